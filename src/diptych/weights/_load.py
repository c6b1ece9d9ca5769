"""A model from weights: for inference (``load``), or to train (``create``)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch

from diptych import log
from diptych.devices import get_device
from diptych.errors import ConfigError
from diptych.files import StrPath
from diptych.models import ModelConfig, ModelNeeds, TwoTower, create_model, model_config
from diptych.weights._assemble import BUFFERS, pixel_statistics
from diptych.weights._catalog import HUB
from diptych.weights._locate import LOCAL, Location, config_at, locate, own_config
from diptych.weights._open import open_model

Precision = Literal["fp32", "fp16", "bf16", "fp64", "file"]
DEFAULT_MODEL = "ViT-B-32"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}


def load(
    source: StrPath,
    *,
    model: str = "",
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    allow: Iterable[str] = (),
) -> TwoTower:
    """A model in evaluation mode, on ``device``, from weights in any checkpoint format.

    ``source`` is a file, a folder, ``ARCHITECTURE/TAG`` or a zoo's name from the catalog, ``hf-hub:OWNER/NAME`` or
    ``local-dir:FOLDER``; ``FILE#ema`` takes the averaged weights beside raw ones. ``model`` names the architecture, where the
    weights do not say it, or another image size. ``precision`` "file" leaves the numbers in
    the file's dtype. ``allow`` lists tensors (fnmatch patterns) that may be missing or left over. Raises WeightsError for
    whatever is wrong with the file, or when it contradicts ``model``; ConfigError for an unknown name; DeviceError.
    """
    if precision != "file" and precision not in DTYPES:
        raise ConfigError(f"unknown precision {precision!r}; known: {', '.join(DTYPES)}, file.")
    location = _located(source, model)
    requested = requested_config(model) if model else None
    loaded = open_model(location.path, requested, allow=allow, known=location.known, which=location.which)
    if precision != "file":
        loaded = converted(loaded, DTYPES[precision])
    return _moved(loaded, get_device(device).torch_device).eval()


def create(model: str | ModelConfig, pretrained: StrPath = "", needs: ModelNeeds | None = None) -> TwoTower:
    """A model to train, in fp32 on the CPU: an architecture with random weights, or with those of ``pretrained``.

    ``pretrained`` is what ``load`` takes; position tables are resized to the architecture's sizes. ``needs`` is what a loss
    needs of the model: random weights begin with its bias and scale; pretrained weights that have neither get them, with a
    line in the log, and others go on with their own. Raises WeightsError when the weights are of another architecture or
    activation.
    """
    config = model_config(model) if isinstance(model, str) else model
    if not pretrained:
        return create_model(config if needs is None else config.with_needs(needs))
    location = _located(pretrained, config.name)
    model_in_file = open_model(location.path, config, known=location.known, needs=needs, which=location.which)
    return converted(model_in_file, torch.float32).train()


def _located(source: StrPath, model: str) -> Location:
    """Where the weights are; what there is to say of the choice is said."""
    location = locate(source, model)
    for remark in location.remarks:
        log.info(remark)
    return location


def is_source(model: StrPath) -> bool:
    """Whether ``--model`` names a folder or repository in place of a preset."""
    return os.fspath(model).startswith((LOCAL, HUB))


def requested_config(model: str) -> ModelConfig:
    """The architecture that ``--model`` asks for: a preset's, or that of ``local-dir:FOLDER``, ``hf-hub:OWNER/NAME``."""
    if is_source(model):
        return config_at(model)
    try:
        return model_config(model)
    except ConfigError as error:
        if Path(model).expanduser().exists():
            raise ConfigError(
                f"--model {model}: no architecture but a path; write {LOCAL}FOLDER, or leave --model out and give the path "
                "to --pretrained."
            ) from error
        raise


def choose(model: str, pretrained: StrPath, default: str = DEFAULT_MODEL) -> tuple[ModelConfig, str]:
    """The architecture and the weights that ``--model`` and ``--pretrained`` mean together.

    Without a model the architecture is the weights' own; without weights too it is ``default``. ``local-dir:FOLDER`` and
    ``hf-hub:OWNER/NAME`` as the model bring their weights, as in open_clip, unless others are given; that is said.
    """
    pretrained = os.fspath(pretrained)
    if is_source(model):
        if not pretrained:
            log.info(f"--model {model}: its architecture and its weights; --pretrained takes others.")
        return requested_config(model), pretrained or model
    if model:
        return requested_config(model), pretrained
    return (own_config(pretrained), pretrained) if pretrained else (model_config(default), "")


def converted(model: TwoTower, dtype: torch.dtype) -> TwoTower:
    """``model.to(dtype)``, but for the mean and std of the pixels, which stay in fp32 at least."""
    tensors = [tensor for name, tensor in model.state_dict().items() if name not in BUFFERS]
    if all(tensor.dtype == dtype for tensor in tensors if tensor.is_floating_point()):
        return model  # the usual case; walking over all modules is slower
    mean, std = pixel_statistics(model.config, dtype)
    model.to(dtype)
    model.image.mean, model.image.std = mean, std
    return model


def _moved(model: TwoTower, device: torch.device) -> TwoTower:
    """``model.to(device)``, but for walking over all modules when every tensor is on it."""
    on_device = all(tensor.device == device for tensor in model.state_dict().values())
    return model if on_device else model.to(device)
