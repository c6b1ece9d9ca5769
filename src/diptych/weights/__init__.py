"""The one door through which weights enter and leave.

``load(X)`` takes a file, a folder, a name of the catalogue or a hub repository, in any layout that has a file here, and
gives a model; ``save`` writes our own layout, ``convert`` any other, with proof. ``create_model_and_transforms`` and
``get_tokenizer`` are the spellings that open_clip's users know. No pickle is executed on any path.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from diptych.devices import get_device
from diptych.errors import ConfigError, WeightsError
from diptych.models import ModelConfig, ModelNeeds, TwoTower, create_model, model_config
from diptych.registry import Registry
from diptych.text import Tokenizer
from diptych.text import get_tokenizer as tokenizer_named
from diptych.weights import _native
from diptych.weights._preprocess import Preprocess, eval_transform, transforms

CHECKPOINT_FORMATS: Registry[type] = Registry(__name__, "layout of weights")
WEIGHT_FILE = "model.safetensors"


def load(
    source: str | Path,
    *,
    model: str | ModelConfig = "",
    device: str = "cpu",
    precision: Literal["fp32", "fp16", "bf16", "fp64", "file"] = "fp32",
    allow: Iterable[str] = (),
) -> TwoTower:
    """A model, ready for inference, from weights in any layout.

    ``source`` is a file, a folder, ``ARCHITECTURE/TAG`` or a zoo's name from the catalogue, or ``hf-hub:OWNER/NAME``.
    ``model`` names the architecture, where the weights do not say it, or another size of picture. ``precision`` "file" keeps
    the file's numbers as they are. ``allow`` lists tensors (fnmatch patterns) that may lack or be left over. Raises
    WeightsError for whatever is wrong with the file, or when it contradicts ``model``.
    """
    from diptych.weights._catalog import located
    from diptych.weights._open import opened

    asked = (model_config(model) if model else None) if isinstance(model, str) else model
    place = located(str(source), asked.name if asked else "")
    found = opened(place.path, asked, allow, place.found)
    kinds = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
    if precision != "file":
        if precision not in kinds:
            raise ConfigError(f"unknown precision {precision!r}; known: {', '.join(kinds)}, file.")
        found = _moved(found, dtype=kinds[precision])
    return _moved(found, device=get_device(device).torch_device).eval()


def _moved(model: TwoTower, **where: Any) -> TwoTower:
    """``model.to``, but for walking over all modules when every tensor is there already."""
    tensors = [item for item in model.state_dict().values() if item.is_floating_point()]
    there = all(getattr(item, key) == value for item in tensors for key, value in where.items())
    return model if there else model.to(**where)


def save_state(path: Path, config: ModelConfig, state: Mapping[str, torch.Tensor], notes: Mapping[str, str]) -> None:
    _native.write(path, config, state, notes)


def save(path: Path, model: TwoTower, notes: Mapping[str, str] | None = None) -> None:
    """Write the weights in one step, with everything needed to use them in the file's metadata. Raises OutputError."""
    _native.write(path, model.config, model.state_dict(), notes or {})


def create(model: str | ModelConfig, pretrained: str = "", needs: ModelNeeds | None = None) -> TwoTower:
    """A model to train: an architecture with random weights, or with those of ``pretrained`` (as ``load`` takes it).

    ``needs`` is what the loss needs of the model. Raises WeightsError when the weights are of another architecture or activation;
    position tables are resized.
    """
    config = (model_config(model) if isinstance(model, str) else model).with_needs(needs or ModelNeeds())
    return load(pretrained, model=config).train() if pretrained else create_model(config)


def create_model_and_transforms(
    model_name: str,
    pretrained: str | Path | None = None,
    device: str | torch.device = "cpu",
    precision: Literal["fp32", "fp16", "bf16", "fp64", "file"] = "fp32",
) -> tuple[TwoTower, Preprocess, Preprocess]:
    """A model in evaluation mode, its training preprocessing and its evaluation preprocessing, as open_clip returns them.

    ``pretrained`` is a tag of the catalogue, a weight file or a folder; None gives random weights. Raises ConfigError,
    WeightsError, DeviceError.
    """
    if pretrained:
        model = load(pretrained, model=model_name, device=str(device), precision=precision)
    else:
        model = create_model(model_name).to(get_device(device).torch_device).eval()
    return (model, *transforms(model.config))


def get_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of an architecture (by name) or of weights (a path, or a name of the catalogue).

    SigLIP's vocabularies come with the weights: give the folder that holds them. Raises ConfigError, WeightsError.
    """
    from diptych.weights._catalog import config_of

    return tokenizer_of(config_of(str(source)), source)


def tokenizer_of(config: ModelConfig, source: str | Path = "") -> Tokenizer:
    """The tokenizer that a model of this config needs; its vocabulary lies with the weights at ``source``."""
    from diptych.weights._catalog import vocabulary_at

    words = config.text.tokenizer
    return tokenizer_named(words, config.text.context_length, None if words == "bpe" else vocabulary_at(str(source)))


def list_pretrained() -> list[tuple[str, str]]:
    """Architecture and tag of all published weights that the catalogue knows, sorted, as open_clip lists them."""
    from diptych.weights._catalog import entries

    return sorted((entry.model, entry.tag) for entry in entries().values())


__all__ = [
    "CHECKPOINT_FORMATS",
    "WEIGHT_FILE",
    "ConfigError",
    "Preprocess",
    "WeightsError",
    "create",
    "create_model_and_transforms",
    "eval_transform",
    "get_tokenizer",
    "list_pretrained",
    "load",
    "save",
    "save_state",
    "tokenizer_of",
    "transforms",
]
