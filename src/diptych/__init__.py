"""Diptych: one toolkit for the whole life of a CLIP-style model, on any PyTorch accelerator.

    import diptych

    model, _, preprocess = diptych.create_model_and_transforms("ViT-B-32", pretrained="runs/mine/model.safetensors")
    tokenizer = diptych.get_tokenizer("ViT-B-32")

The public interface: these names stay. They are imported when they are first used, so that importing the package costs
nothing. They are the library's own (images are uint8, texts run packed); code that was written for open_clip wants
``from diptych import open_clip``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.errors import DiptychError
    from diptych.models import TwoTower, list_models, model_config
    from diptych.types import Batch, Encoded, Record, Sample, Terms, Wants
    from diptych.weights import create_model_and_transforms, get_tokenizer, list_pretrained, load, save

__version__ = "0.1.0"

_MODULES = {
    "Batch": "types",
    "DiptychError": "errors",
    "Encoded": "types",
    "Record": "types",
    "Sample": "types",
    "Terms": "types",
    "TwoTower": "models",
    "Wants": "types",
    "create_model_and_transforms": "weights",
    "get_tokenizer": "weights",
    "list_models": "models",
    "list_pretrained": "weights",
    "load": "weights",
    "model_config": "models",
    "save": "weights",
}

__all__ = [
    "Batch",
    "DiptychError",
    "Encoded",
    "Record",
    "Sample",
    "Terms",
    "TwoTower",
    "Wants",
    "create_model_and_transforms",
    "get_tokenizer",
    "list_models",
    "list_pretrained",
    "load",
    "model_config",
    "save",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use. Raises AttributeError for others."""
    if name not in _MODULES:
        raise AttributeError(
            f"module 'diptych' has no attribute {name!r}; open_clip's names are in `from diptych import open_clip`."
        )
    return getattr(importlib.import_module(f"diptych.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """What the module has, with the names that were not imported yet."""
    return sorted({*globals(), *__all__})
