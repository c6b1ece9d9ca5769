"""A model from weights: for inference (``load``), or to train (``create``)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch

from diptych.devices import get_device
from diptych.errors import ConfigError
from diptych.models import ModelNeeds, TwoTower, create_model, model_config
from diptych.weights._locate import locate
from diptych.weights._open import open_model

Precision = Literal["fp32", "fp16", "bf16", "fp64", "file"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}


def load(
    source: str | Path,
    *,
    model: str = "",
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    allow: Iterable[str] = (),
) -> TwoTower:
    """A model in evaluation mode, on ``device``, from weights in any checkpoint format.

    ``source`` is a file, a folder, ``ARCHITECTURE/TAG`` or a zoo's name from the catalog, or ``hf-hub:OWNER/NAME``. ``model``
    names the architecture, where the weights do not say it, or another image size. ``precision`` "file" leaves the numbers in
    the file's dtype. ``allow`` lists tensors (fnmatch patterns) that may be missing or left over. Raises WeightsError for
    whatever is wrong with the file, or when it contradicts ``model``; ConfigError for an unknown name; DeviceError.
    """
    if precision != "file" and precision not in DTYPES:
        raise ConfigError(f"unknown precision {precision!r}; known: {', '.join(DTYPES)}, file.")
    location = locate(str(source), model)
    requested = model_config(model) if model else None
    loaded = open_model(location.path, requested, allow=allow, known=location.known)
    if precision != "file":
        loaded = converted(loaded, DTYPES[precision])
    return converted(loaded, get_device(device).torch_device).eval()


def create(name: str, pretrained: str = "", needs: ModelNeeds | None = None) -> TwoTower:
    """A model to train, in fp32 on the CPU: architecture ``name`` with random weights, or with those of ``pretrained``.

    ``pretrained`` is what ``load`` takes; position tables are resized to ``name``'s sizes. ``needs`` is what a loss needs of
    the model: random weights begin with its bias and scale; pretrained weights that have neither get them, with a line in the
    log, and others go on with their own. Raises WeightsError when the weights are of another architecture or activation.
    """
    config = model_config(name)
    if not pretrained:
        return create_model(config if needs is None else config.with_needs(needs))
    location = locate(pretrained, name)
    return converted(open_model(location.path, config, known=location.known, needs=needs), torch.float32).train()


def converted(model: TwoTower, target: torch.dtype | torch.device) -> TwoTower:
    """``model.to(target)``, but for walking over all modules when every tensor has that dtype or device."""
    tensors = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    if isinstance(target, torch.dtype):
        return model if all(tensor.dtype == target for tensor in tensors) else model.to(target)
    return model if all(tensor.device == target for tensor in tensors) else model.to(target)
