"""Diptych's own layout: safetensors with the architecture in the metadata.

The metadata is one JSON text under the key ``diptych``: the layout's version, the model's config (with activation,
tokenizer and preprocessing), and notes. Reading and building are the door's work; this file knows what is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diptych.errors import ConfigError, WeightsError
from diptych.files import replacing
from diptych.models import ModelConfig, model_config_from_dict
from diptych.tensorfiles.read import Stored

LAYOUT = 1


def write(path: Path, config: ModelConfig, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
    """Write beside and rename. Raises OutputError when the disk refuses."""
    about = {"layout": LAYOUT, "config": config.to_dict(), "tokenizer": config.text.tokenizer, "notes": dict(notes)}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path, "weight file") as beside:
        try:
            save_file(whole, beside, metadata={"diptych": json.dumps(about)})
        except SafetensorError as error:
            raise OSError(None, str(error)) from error


def config_in(stored: Stored) -> ModelConfig:
    """The architecture in the metadata. Raises WeightsError when it is damaged or newer than this Diptych."""
    path = stored.path
    try:
        about = json.loads(stored.metadata["diptych"])
        layout, config = about["layout"], about["config"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: its metadata is damaged ({error}).") from error
    if layout != LAYOUT:
        raise WeightsError(f"{path}: written in layout {layout}, this Diptych reads {LAYOUT}; update Diptych.")
    try:
        return model_config_from_dict(config)
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error
