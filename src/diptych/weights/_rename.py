"""Rules that invert: one rule says how tensors of another checkpoint format and ours correspond, and serves both ways.

A ``Rule`` ties one foreign tensor to one or several of ours through a ``Transform`` whose two functions undo each other. A
format is a list of rules; ``to_ours`` and ``to_theirs`` apply it. No tensor name of any system is written in this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from diptych.errors import WeightsError


@dataclass(frozen=True)
class Transform:
    """``ours(theirs, parts)`` splits or reshapes one foreign tensor into ``parts`` of ours; ``theirs`` undoes it."""

    ours: Callable[[Tensor, int], Sequence[Tensor]]
    theirs: Callable[[Sequence[Tensor]], Tensor]


SAME = Transform(lambda tensor, _: [tensor], lambda parts: parts[0])
TRANSPOSED = Transform(lambda tensor, _: [tensor.T], lambda parts: parts[0].T.contiguous())
# Several of ours on top of each other, as in a fused q, k, v projection.
STACKED = Transform(lambda tensor, parts: tensor.chunk(parts), lambda parts: torch.cat(list(parts)))
# Ours is a vector of length one: [] or [1] of theirs, written as [] or as [1].
SCALAR = Transform(lambda tensor, _: [tensor.reshape(1)], lambda parts: parts[0].reshape(()))
SINGLETON = Transform(lambda tensor, _: [tensor.reshape(1)], lambda parts: parts[0].reshape(1))
# Leading axes of length one: [N, D] of ours is [1, N, D], [D] of ours is [1, 1, D].
LEADING = Transform(lambda tensor, _: [tensor[0]], lambda parts: parts[0][None])
LEADING_TWO = Transform(lambda tensor, _: [tensor[0, 0]], lambda parts: parts[0][None, None])


@dataclass(frozen=True)
class Rule:
    """A foreign tensor's name and the names of ours that it becomes."""

    theirs: str
    ours: tuple[str, ...]
    transform: Transform = SAME


def same(theirs: str, ours: str, leaves: Iterable[str] = ("weight", "bias")) -> list[Rule]:
    """The same tensors under another module's name."""
    return [Rule(f"{theirs}.{leaf}", (f"{ours}.{leaf}",)) for leaf in leaves]


def to_ours(rules: Iterable[Rule], tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our tensors from theirs, sharing memory where nothing has to move. Missing and left-over names are for ``check_names``.

    Raises WeightsError for a tensor whose shape a rule cannot take.
    """
    renamed: dict[str, Tensor] = {}
    for rule in rules:
        if rule.theirs not in tensors:
            continue
        tensor = tensors[rule.theirs]
        try:
            parts = rule.transform.ours(tensor, len(rule.ours))
        except (RuntimeError, IndexError) as error:
            raise WeightsError(f"{where}: {rule.theirs} has the odd shape {list(tensor.shape)}.") from error
        if len(parts) != len(rule.ours):
            raise WeightsError(
                f"{where}: {rule.theirs} of shape {list(tensor.shape)} does not split into {len(rule.ours)}."
            )
        renamed.update(zip(rule.ours, parts, strict=True))
    return renamed


def to_theirs(rules: Iterable[Rule], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors from ours, contiguous."""
    return {rule.theirs: rule.transform.theirs([tensors[name] for name in rule.ours]).contiguous() for rule in rules}


def check_names(
    where: str, format_name: str, missing: Iterable[str], left_over: Iterable[str], allowed: Iterable[str] = ()
) -> None:
    """Raise WeightsError when names are missing or left over, but for those that ``allowed`` lists (fnmatch patterns)."""
    patterns = list(allowed)

    def refused(names: Iterable[str]) -> list[str]:
        return sorted(name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns))

    groups = [("missing", refused(missing)), ("left over", refused(left_over))]
    problems = [f"{title}: {listed(names)}" for title, names in groups if names]
    if problems:
        raise WeightsError(
            f"{where}: the tensors do not fit the architecture (read as {format_name}); {'; '.join(problems)}. "
            "If that is right, name them with allow= (--allow)."
        )


def listed(names: Sequence[str]) -> str:
    """The first six names, and how many more there are."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
