"""Weights of any checkpoint format under open_clip's names, for the drop-in package; no model is built here.

Tensors are the file's own where its names already are open_clip's, and renamed through the formats' rules elsewhere. Sizes are
not changed: whoever loads them resizes positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import Tensor

from diptych import log
from diptych.errors import ConfigError
from diptych.files import StrPath
from diptych.models import ModelConfig, model_config
from diptych.tensorfiles.read import Stored
from diptych.weights._base import Description, UndescribedError
from diptych.weights._describe import describe
from diptych.weights._locate import locate
from diptych.weights._open import renamed
from diptych.weights._open_clip_config import model_cfg, preprocess_cfg
from diptych.weights._recognize import recognize
from diptych.weights._refused import refuse_non_finite
from diptych.weights._rename import to_theirs
from diptych.weights._state_dict import read_model
from diptych.weights.openclip import OpenClip

SAME_NAMES = ("openclip", "openai")


class OpenClipState(NamedTuple):
    """``tensors`` by open_clip's names; what the weights say of themselves, None where they say nothing.

    ``activation`` is "gelu" or "quickgelu", ``preprocess`` open_clip's ``preprocess_cfg``.
    """

    tensors: dict[str, Tensor]
    activation: str | None
    preprocess: dict[str, object] | None


def open_clip_state(source: StrPath, model: str = "") -> OpenClipState:
    """The tensors of ``source`` (what ``load`` takes) by open_clip's names; ``model`` is the preset, where the file needs it.

    Raises WeightsError for what is no model, or none that open_clip has names for.
    """
    location = locate(source, model)
    choice = read_model(location.path, location.which)
    for remark in (*location.remarks, *choice.remarks):
        log.info(remark)
    stored = choice.stored
    refuse_non_finite(stored.tensors, location.path, ())
    description = _description(stored, model)
    if "diptych" not in stored.metadata and recognize(stored).name in SAME_NAMES:
        return OpenClipState(_informative(stored), *_certain(description))
    assert description is not None  # else _description raised
    ours = dict(stored.tensors)
    if "diptych" not in stored.metadata:
        ours = renamed(recognize(stored), stored, description.config, set(), ())
    rules = OpenClip().rules(description.config)
    theirs = to_theirs([rule for rule in rules if set(rule.ours) <= set(ours)], ours)
    return OpenClipState(theirs, *_certain(description))


def _informative(stored: Stored) -> dict[str, Tensor]:
    """Without tensors that say nothing, such as a stored mask."""
    ignored: Iterable[str] = recognize(stored).ignored
    return {name: item for name, item in stored.tensors.items() if not any(fnmatchcase(name, each) for each in ignored)}


def _description(stored: Stored, model: str) -> Description | None:
    try:
        requested = model_config(model) if model else None
    except ConfigError:  # a config that the user added
        requested = None
    try:
        return describe(stored, requested)[1]
    except UndescribedError:
        if recognize(stored).name in SAME_NAMES:
            return None
        raise


def _certain(description: Description | None) -> tuple[str | None, dict[str, object] | None]:
    if description is None:
        return None, None
    config = description.config
    preprocess = preprocess_cfg(config) if description.preprocess_known else None
    return (config.activation if description.activation_known else None), preprocess


def open_clip_config(config: ModelConfig) -> tuple[dict[str, object], dict[str, object]]:
    """An architecture as open_clip's ``model_cfg`` and ``preprocess_cfg``. Raises WeightsError for what those cannot say."""
    return model_cfg(config), preprocess_cfg(config)
