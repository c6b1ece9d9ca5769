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
from diptych.errors import ConfigError, WeightsError
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
    checkpoint_format = None if "diptych" in stored.metadata else recognize(stored)
    same_names = checkpoint_format is not None and checkpoint_format.name in SAME_NAMES
    description = _description(stored, model, may_lack=same_names)
    if checkpoint_format is not None and same_names:
        return OpenClipState(_informative(stored, checkpoint_format.ignored), *_certain(description))
    assert description is not None  # else _description raised
    ours = dict(stored.tensors)
    if checkpoint_format is not None:
        ours = renamed(checkpoint_format, stored, description.config, set(), ())
    rules = OpenClip().rules(description.config)
    theirs = to_theirs([rule for rule in rules if set(rule.ours) <= set(ours)], ours)
    return OpenClipState(theirs, *_certain(description))


def _informative(stored: Stored, ignored: Iterable[str]) -> dict[str, Tensor]:
    """Without tensors that say nothing, such as a stored mask."""
    return {name: item for name, item in stored.tensors.items() if not any(fnmatchcase(name, each) for each in ignored)}


def _description(stored: Stored, model: str, may_lack: bool) -> Description | None:
    """What the weights are; None, where that ``may_lack``, for what nothing describes."""
    try:
        requested = model_config(model) if model else None
    except ConfigError:  # a config that the user added
        requested = None
    try:
        return describe(stored, requested)[1]
    except UndescribedError:
        if may_lack:
            return None
        raise


def _certain(description: Description | None) -> tuple[str | None, dict[str, object] | None]:
    if description is None:
        return None, None
    config = description.config
    preprocess = preprocess_cfg(config) if description.preprocess_known else None
    return (config.activation if description.activation_known else None), preprocess


def open_clip_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """open_clip's names of each of our parameters; empty for an architecture that open_clip has no names for."""
    try:
        rules = OpenClip().rules(config)
    except WeightsError:
        return {}
    names: dict[str, tuple[str, ...]] = {}
    for rule in rules:
        for ours in rule.ours:
            names[ours] = (*names.get(ours, ()), rule.theirs)
    return names


def open_clip_config(config: ModelConfig) -> tuple[dict[str, object], dict[str, object]]:
    """An architecture as open_clip's ``model_cfg`` and ``preprocess_cfg``. Raises WeightsError for what those cannot say."""
    return model_cfg(config), preprocess_cfg(config)
