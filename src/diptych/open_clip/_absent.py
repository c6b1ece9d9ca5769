"""Names of open_clip that are not here, and the one line that each raises: what it is, and what there is instead.

The generated table of public names (``docs/open_clip.md``) lists them as its exceptions.
"""

from __future__ import annotations

from typing import Any, NoReturn

from diptych.errors import ConfigError

INSTEAD = {
    "CoCa": "CoCa's captioning is not here; its two towers alone are CLIP's: convert such weights with open_clip itself",
    "CoCaLoss": "CoCa's captioning loss is not here; `ClipLoss` is its contrastive part",
    "prepare_inputs_for_generation": "CoCa's text generation is not here",
    "TimmModel": "timm's image towers are not here; SigLIP's weights load with `diptych.create_model_and_transforms`",
    "HFTextEncoder": "text towers of transformers are not here; `diptych models` lists what there is",
    "load_big_vision_weights": "big_vision's .npz files are not read; SigLIP's weights of open_clip or Hugging Face are, by"
    " `diptych.create_model_and_transforms`",
}


def refuse(name: str) -> NoReturn:
    """Raise ConfigError with the line of ``name``."""
    raise ConfigError(f"open_clip's {name} was asked for: {INSTEAD[name]}.")


class _Absent:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        refuse(type(self).__name__)


class CoCa(_Absent):
    """Refused."""


class CoCaLoss(_Absent):
    """Refused."""


class TimmModel(_Absent):
    """Refused."""


class HFTextEncoder(_Absent):
    """Refused."""


def prepare_inputs_for_generation(*args: Any, **kwargs: Any) -> NoReturn:
    """Refused."""
    del args, kwargs
    refuse("prepare_inputs_for_generation")


def load_big_vision_weights(*args: Any, **kwargs: Any) -> NoReturn:
    """Refused."""
    del args, kwargs
    refuse("load_big_vision_weights")
