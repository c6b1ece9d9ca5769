"""Diptych's own layout: safetensors with the architecture in the metadata.

The metadata is one JSON text under the key ``diptych``: the layout's version, the model's config (with activation and
preprocessing), the tokenizer's name. A model is built without memory (on the meta device), the file is mapped, and its
tensors become the parameters. No pickle is involved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from diptych.errors import ConfigError, WeightsError
from diptych.files import replacing
from diptych.models import ModelConfig, TwoTower, model_config_from_dict

LAYOUT = 1


def write(path: Path, model: TwoTower, notes: Mapping[str, str]) -> None:
    """Write beside and rename. Raises OutputError when the disk refuses."""
    about = {"layout": LAYOUT, "config": model.config.to_dict(), "tokenizer": "bpe", "notes": dict(notes)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path, "weight file") as beside:
        try:
            save_file(tensors, beside, metadata={"diptych": json.dumps(about)})
        except SafetensorError as error:
            raise OSError(None, str(error)) from error


def read(path: Path) -> TwoTower:
    """The model in the file. Raises WeightsError, of one line, for whatever is wrong with it."""
    try:
        with safe_open(path, framework="pt") as file:
            config = _config(path, file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error}).") from error
    with torch.device("meta"):
        model = TwoTower(config)
    expected = model.state_dict()
    _same_names(path, set(expected), set(tensors))
    wrong = [name for name in expected if expected[name].shape != tensors[name].shape]
    if wrong:
        name = wrong[0]
        raise WeightsError(
            f"{path}: {name} has shape {list(tensors[name].shape)}, expected {list(expected[name].shape)}."
        )
    model.load_state_dict(tensors, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def _config(path: Path, metadata: Mapping[str, str]) -> ModelConfig:
    if "diptych" not in metadata:
        raise WeightsError(f"{path}: a safetensors file, but not one of Diptych's: it does not say its architecture.")
    try:
        about = json.loads(metadata["diptych"])
        layout, config = about["layout"], about["config"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: its metadata is damaged ({error}).") from error
    if layout != LAYOUT:
        raise WeightsError(f"{path}: written in layout {layout}, this Diptych reads {LAYOUT}; update Diptych.")
    try:
        return model_config_from_dict(config)
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error


def _same_names(path: Path, expected: set[str], found: set[str]) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        lists = [
            f"{word} {', '.join(names[:5])}" for word, names in (("missing", missing), ("left over", extra)) if names
        ]
        raise WeightsError(f"{path}: the tensors do not fit the architecture: {'; '.join(lists)}.")
