"""The types that flow through the house, and the one legend of its shapes.

Legend: B pairs on this rank · V image views · T text views · L tokens of a caption · N patches (or image tokens) ·
D embedding width · H, W pixels. V and T come first, so that ``images[0]`` is a contiguous [B, 3, H, W].

    file/shard --Source--> Record --prepare(Wants)--> Sample --collate--> Batch --Objective--> Terms

What crosses an ``nn.Module`` boundary is a NamedTuple: a native pytree node, which every sharding and compiling tool
of PyTorch walks. This file holds shapes and meanings only: no reading, no maths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Record:
    """One image with its captions as a source gives it: still encoded, nothing decoded, nothing chosen.

    ``key`` is unique within its source and stable from run to run. ``image`` is a path or the encoded bytes.
    ``captions`` holds all of them. ``group`` names the picture itself: records with the same group show the same
    picture (one CSV row per caption); None means that the key is the group. ``source`` names the data set, where several
    are joined.
    """

    key: str
    image: Path | bytes
    captions: tuple[str, ...] = ()
    label: int | None = None
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


class Sample(NamedTuple):
    """One prepared pair, as a worker makes it.

    ``images`` uint8 [V, 3, H, W]; ``tokens`` T arrays of ids, int64 [L_t], unpadded; ``masked`` one array of ids with
    words masked out, or None; ``label`` a class index, or None; ``group`` a 63-bit id of the picture; ``cut`` the number
    of tokens that truncation took away, over all text views; ``features`` fp32 [D] of the picture, where they are known
    beforehand: ``images`` is then empty, [V, 3, 0, 0]; ``source`` the data set's name, where several are joined.
    """

    images: np.ndarray
    tokens: tuple[np.ndarray, ...]
    masked: np.ndarray | None
    label: int | None
    key: str
    group: int
    cut: int = 0
    features: np.ndarray | None = None
    source: str = ""


class Batch(NamedTuple):
    """B prepared pairs of one rank.

    ``images`` uint8 [V, B, 3, H, W] (a floating-point tensor is taken as already normalised); ``tokens`` int64 [T, B, L],
    padded with 0 to the longest caption here only; ``lengths`` int64 [T, B]; ``masked`` int64 [B, L] or None; ``labels``
    int64 [B] or None; ``groups`` int64 [B], same picture = same id, or None; ``cut`` tokens lost to truncation here;
    ``image_features`` fp32 [B, D], not normalised, where they are known beforehand: ``images`` is then [V, B, 3, 0, 0].
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    masked: Tensor | None
    labels: Tensor | None
    keys: tuple[str, ...]
    groups: Tensor | None
    cut: int = 0
    image_features: Tensor | None = None


class Encoded(NamedTuple):
    """What a tower gives: ``pooled`` [B, D], not normalised; ``tokens`` [B, N, D] or None; ``mask`` bool [B, N], True = real."""

    pooled: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None


class Terms(NamedTuple):
    """What an objective gives: ``parts`` weighted scalars, all of them summed; ``metrics`` scalars, never summed."""

    parts: dict[str, Tensor]
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Wants:
    """What an objective asks of the data and of the towers: the only thing that data and losses know of each other."""

    views: int = 1
    texts: int = 1
    masked: bool = False
    tokens: bool = False
    teacher: bool = False


@dataclass(frozen=True)
class Part:
    """Which share of which pass a reader takes: this rank and worker, the epoch and seed, and how many global records to skip."""

    rank: int = 0
    ranks: int = 1
    worker: int = 0
    workers: int = 1
    epoch: int = 0
    seed: int = 0
    skip: int = 0
