"""Tables that invert: one rule says how tensors of another layout and ours correspond, and serves both ways.

A ``Rule`` ties one tensor of theirs to one or several of ours through a ``Transform`` whose two functions undo each other. A
layout is a list of rules; ``to_ours`` and ``to_theirs`` walk it. Nothing here knows a name of anybody's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

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
# A number of theirs is a vector of one element of ours, and the other way round.
SCALAR = Transform(lambda tensor, _: [tensor.reshape(1)], lambda parts: parts[0].reshape(()))
ONE = Transform(lambda tensor, _: [tensor.reshape(1)], lambda parts: parts[0].reshape(1))
# Leading axes of length one: [N, D] of ours is [1, N, D], [D] of ours is [1, 1, D].
LEADING = Transform(lambda tensor, _: [tensor[0]], lambda parts: parts[0][None])
LEADING_TWO = Transform(lambda tensor, _: [tensor[0, 0]], lambda parts: parts[0][None, None])


@dataclass(frozen=True)
class Rule:
    """One tensor of theirs and the tensors of ours that it becomes."""

    theirs: str
    ours: tuple[str, ...]
    change: Transform = SAME


def same(theirs: str, ours: str, leaves: Iterable[str] = ("weight", "bias")) -> list[Rule]:
    """The same tensors under another module's name."""
    return [Rule(f"{theirs}.{leaf}", (f"{ours}.{leaf}",)) for leaf in leaves]


def to_ours(rules: Iterable[Rule], tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Our tensors from theirs, sharing memory where nothing has to move. Names that lack or are left over are not judged here.

    Raises WeightsError for a tensor whose shape a rule cannot take.
    """
    found: dict[str, Tensor] = {}
    for rule in rules:
        if rule.theirs not in tensors:
            continue  # lacking names are for check() to judge, all at once
        tensor = tensors[rule.theirs]
        try:
            parts = rule.change.ours(tensor, len(rule.ours))
        except (RuntimeError, IndexError) as error:
            raise WeightsError(f"{where}: {rule.theirs} has the odd shape {list(tensor.shape)}.") from error
        if len(parts) != len(rule.ours):
            raise WeightsError(
                f"{where}: {rule.theirs} of shape {list(tensor.shape)} does not split into {len(rule.ours)}."
            )
        found.update(zip(rule.ours, parts, strict=True))
    return found


def to_theirs(rules: Iterable[Rule], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors from ours, contiguous."""
    return {rule.theirs: rule.change.theirs([tensors[name] for name in rule.ours]).contiguous() for rule in rules}


def check(where: str, kind: str, missing: Iterable[str], extra: Iterable[str], allowed: Iterable[str] = ()) -> None:
    """Raise WeightsError when names lack or are left over, but for those that ``allowed`` lists (fnmatch patterns)."""
    from fnmatch import fnmatchcase

    patterns = list(allowed)

    def judged(names: Iterable[str]) -> list[str]:
        return sorted(name for name in names if not any(fnmatchcase(name, pattern) for pattern in patterns))

    lists = [(word, judged(names)) for word, names in (("missing", missing), ("left over", extra))]
    told = [f"{word}: {_few(names)}" for word, names in lists if names]
    if told:
        raise WeightsError(
            f"{where}: the tensors do not fit the architecture (read as {kind}); {'; '.join(told)}. "
            "If that is right, name them with allow= (--allow)."
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
