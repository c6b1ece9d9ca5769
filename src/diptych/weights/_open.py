"""From a file to a model: read, describe, rename, check names, resize positions, assemble.

Each step has its own file; their order is decided here. Only position tables may change size.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from diptych import log
from diptych.models import ModelConfig, ModelNeeds, TwoTower, create_model
from diptych.tensorfiles.read import Stored
from diptych.weights._assemble import assemble, is_counter, needed_values, with_needs, with_zeros
from diptych.weights._base import CheckpointFormat, Description
from diptych.weights._describe import describe, target_config
from diptych.weights._recognize import recognize
from diptych.weights._refused import refuse_non_finite
from diptych.weights._rename import check_names, to_ours
from diptych.weights._resize import resize_positions
from diptych.weights._state_dict import read_model


def open_model(
    path: Path,
    requested: ModelConfig | None = None,
    *,
    allow: Iterable[str] = (),
    known: Description | None = None,
    needs: ModelNeeds | None = None,
    which: str = "",
) -> TwoTower:
    """The model in a file, in the file's own number format, on the CPU. Raises WeightsError.

    ``requested`` is the architecture to build, ``known`` what the catalog says of these weights, ``needs`` what a loss needs,
    ``which`` of several state dicts is the model (see ``_state_dict``).
    """
    choice, where, allow = read_model(path, which), str(path), tuple(allow)
    stored = choice.stored
    for remark in choice.remarks:
        log.info(remark)
    checkpoint_format, description = _description(stored, requested, known)
    target, config = target_config(description, requested, where), description.config
    refuse_non_finite(stored.tensors, where, allow)
    may_lack = set(needed_values(needs))
    if checkpoint_format is None:
        tensors = stored.tensors
        _check_native(stored, config, may_lack, allow)
    else:
        tensors = renamed(checkpoint_format, stored, config, may_lack, allow)
    tensors, target = with_needs(tensors, target, needs, where)
    if checkpoint_format is not None:
        tensors = with_zeros(tensors, checkpoint_format.optional, target, where)
    return assemble(resize_positions(tensors, config, target), target, where)


def _description(
    stored: Stored, requested: ModelConfig | None, known: Description | None
) -> tuple[CheckpointFormat | None, Description]:
    """The catalog's, but for our own files, which say more."""
    if known is None or "diptych" in stored.metadata:
        return describe(stored, requested)
    return recognize(stored), known


def renamed(
    checkpoint_format: CheckpointFormat, stored: Stored, config: ModelConfig, may_lack: set[str], allow: Iterable[str]
) -> dict[str, Tensor]:
    """Our tensors. Raises WeightsError when some are missing that may not be, or are left over."""
    where, rules = str(stored.path), checkpoint_format.rules(config, stored)
    tensors = to_ours(rules, stored.tensors, where)
    present = set(tensors) | may_lack | set(checkpoint_format.optional)
    missing = [rule.theirs for rule in rules if not set(rule.ours) <= present and not is_counter(rule.theirs)]
    left_over = set(stored.tensors) - {rule.theirs for rule in rules}
    check_names(where, checkpoint_format.name, missing, left_over, [*checkpoint_format.ignored, *allow])
    return tensors


def _check_native(stored: Stored, config: ModelConfig, may_lack: set[str], allow: Iterable[str]) -> None:
    expected, names = set(create_model(config, device="meta").state_dict()), set(stored.tensors)
    check_names(str(stored.path), "diptych", expected - names - may_lack, names - expected, allow)
