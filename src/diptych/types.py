"""The types that flow through Diptych, and the one legend of its shapes.

Legend: B pairs on this rank · V image views · T text views · L tokens of a caption · N patches (or image tokens) ·
D embedding width · H, W pixels. V and T come first, so that ``images[0]`` is a contiguous [B, 3, H, W].

    file/shard --Source--> Record --Prepare(Wants)--> Sample --collate--> Batch --Objective--> Terms

What crosses an ``nn.Module`` boundary is a NamedTuple: a native pytree node, which every sharding and compiling tool
of PyTorch walks. This file holds shapes and meanings only: no reading, no math.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

IGNORED = -100
"""The target of a token that is not predicted, as ``torch.nn.functional.cross_entropy`` ignores it by default."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image with its captions as a source gives it: still encoded, nothing decoded, nothing chosen.

    ``key`` is unique within its source and stable from run to run. ``image`` is a path or the encoded bytes.
    ``captions`` holds all of them. ``group`` names the image itself: records with the same group show the same
    image (one CSV row per caption); None means that the key is the group. ``source`` names the data set, where several
    are concatenated.
    """

    key: str
    image: Path | bytes
    captions: tuple[str, ...] = ()
    label: int | None = None
    group: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


class MaskedSample(NamedTuple):
    """Ids of the first text view with some masked, int64 [L], and what stood there, int64 [L], ``IGNORED`` elsewhere."""

    tokens: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True, slots=True)
class Sample:
    """One prepared pair, as a worker makes it.

    ``images`` uint8 [V, 3, H, W]; ``tokens`` T arrays of ids, int64 [L_t], unpadded; ``lengths`` of each text view the
    number of ids up to and including its end token; ``key`` of the record and ``index``, its number in the source;
    ``seed`` 63 bits made of (seed, epoch, record), from which every random choice for this pair is drawn; ``group`` a 63-bit
    id of the image; ``label`` a class index, or None; ``masked`` where an objective wants it; ``num_truncated`` tokens that
    truncation removed, over all text views; ``features`` fp32 [D] of the image, where they were precomputed: ``images`` is
    then empty, [V, 3, 0, 0]; ``source`` the data set's name, where several are concatenated; ``damage`` what is damaged in
    the image, where it could be decoded all the same.
    """

    images: np.ndarray
    tokens: tuple[np.ndarray, ...]
    lengths: tuple[int, ...]
    key: str
    index: int
    seed: int
    group: int
    label: int | None = None
    masked: MaskedSample | None = None
    num_truncated: int = 0
    features: np.ndarray | None = None
    source: str = ""
    damage: str = ""


class MaskedTokens(NamedTuple):
    """Masked ids of the first text view, int64 [B, L]; ``targets`` int64 [B, L], ``IGNORED`` where nothing is predicted.

    Their lengths are ``Batch.lengths[0]``: masking neither adds nor removes a token.
    """

    tokens: Tensor
    targets: Tensor


class SharedPrefixes(NamedTuple):
    """Texts that begin with the same ids: ``group`` int64 [B] of each text, ``length`` int64 [B] of the prefix that it shares.

    All texts of a group begin with the same ``length`` ids (0: nothing is shared), and each goes on after them. A tower that
    ``shares_prefixes`` computes each prefix once; the features are equal, to rounding, to those without.
    """

    group: Tensor
    length: Tensor


class GroupedTexts(NamedTuple):
    """Plan of texts [B, L] by groups of equal length: only real tokens are computed, T of them, and groups stand together.

    ``runs`` are (number of texts, their length) of each group; ``gather`` int64 [T] is the index of each token in the flattened
    [B * L] ids and ``positions`` int64 [T] its position in its text; ``ends`` int64 [B] the index of each end token among the
    T, texts in the order of their lengths; ``inverse`` int64 [B] takes them back to the batch's order. ``padded`` is L.
    """

    padded: int
    runs: tuple[tuple[int, int], ...]
    gather: Tensor
    positions: Tensor
    ends: Tensor
    inverse: Tensor


class PackedTexts(NamedTuple):
    """Plan of texts [B, L] one after another in the batch's order, filled up to a budget of T tokens: one shape for many batches.

    The filling makes P sequences of its own after the B texts, none of them empty, so that every token is in a sequence.
    ``gather`` and ``positions`` int64 [T] as of ``GroupedTexts`` (filling repeats the first token); ``begins`` int32 [B + P + 1]
    where each sequence begins, and T; ``singles`` int32 [B + P + 1] counts from 0; ``ends`` int64 [B + P] the last token of each
    sequence. No sequence is longer than ``longest``. ``texts`` is B, ``padded`` L.
    """

    padded: int
    texts: int
    longest: int
    gather: Tensor
    positions: Tensor
    begins: Tensor
    singles: Tensor
    ends: Tensor


class BucketedTexts(NamedTuple):
    """Plan of texts [B, L] that are computed as they are padded, L one of a few lengths: ``ends`` int64 [B] is the index of each
    end token in the flattened [B * L] ids. ``padded`` is L.
    """

    padded: int
    ends: Tensor


TextForm = Literal["groups", "varlen", "buckets"]
"""Which kind of plan texts get: in the order of the three above."""

TextPlan = GroupedTexts | PackedTexts | BucketedTexts
"""How a causal tower lays out texts, as plain numbers that are made on the host and travel with the batch."""


class Batch(NamedTuple):
    """B prepared pairs of one rank: a whole step's, or one micro-batch of them.

    ``images`` uint8 [V, B, 3, H, W] (a floating-point tensor is taken as already normalized); ``tokens`` int64 [T, B, L],
    padded to the longest caption here only; ``lengths`` int64 [T, B], ids up to and including the end token; ``keys`` the
    records' names; ``indices`` int64 [B], the records' numbers in the source, dense from 0; ``seeds`` int64 [B], see
    ``Sample.seed``; ``epoch`` counts from 0; ``groups`` int64 [B], same image = same id; ``labels`` int64 [B] or None;
    ``masked`` where the objective wants it, else None; ``num_truncated`` tokens lost to truncation in this batch;
    ``image_features`` fp32 [B, D], not normalized, where they were precomputed: ``images`` is then [V, B, 3, 0, 0];
    ``plans`` how the ids of each text view are laid out, T of them, where the loader planned it; of ``masked`` as of the first.
    ``predicted`` int64 [M], where the flattened ``masked.targets`` are predicted, known once the batch is on its way to a device;
    ``companion`` what a frozen companion gave of the images before the run, [B, E], where an objective stores that.
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    keys: tuple[str, ...]
    indices: Tensor
    seeds: Tensor
    groups: Tensor
    labels: Tensor | None = None
    masked: MaskedTokens | None = None
    epoch: int = 0
    num_truncated: int = 0
    image_features: Tensor | None = None
    plans: tuple[TextPlan, ...] | None = None
    predicted: Tensor | None = None
    companion: Tensor | None = None


class Pairs(NamedTuple):
    """What ``compare`` sees of a step beside features: the pairs of this rank in the order of the data.

    The same in a plain step and over micro-batches. Fields are those of ``Batch``.
    """

    keys: tuple[str, ...]
    indices: Tensor
    seeds: Tensor
    groups: Tensor
    labels: Tensor | None
    epoch: int


class Encoded(NamedTuple):
    """What a tower gives; one meaning in all families.

    ``pooled`` [B, D]: the feature, not normalized. ``state`` [B, width]: what the projection made it of, after the last norm
    (``pooled`` itself where a tower has no projection). ``tokens`` [B, N, width]: the features of patches or text tokens after
    the tower's last norm and before its projection (before that norm too where ``VitConfig.norm_tokens`` is false), without a
    class token; ``mask`` bool [B, N], True = real. Both are None unless ``return_tokens`` was asked for. A tower's
    ``project_tokens`` takes tokens into the embedding, [B, N, D].
    """

    pooled: Tensor
    state: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None


class Terms(NamedTuple):
    """What an objective gives: ``losses`` weighted scalars, all of them summed; ``metrics`` scalars, never summed.

    Each is a mean over this rank's pairs, so that its mean over ranks is that of the global batch.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Wants:
    """What an objective asks of the data: the only thing that data and losses know of each other.

    ``images`` and ``texts`` name the views, in order; each name is a recipe of ``diptych.image.VIEWS`` or
    ``diptych.text.VIEWS``, and a name that stands twice gives two views, drawn apart. ``masked`` asks for ``Batch.masked``
    of the first text view, which needs a tokenizer with a mask token. What cannot be given is a ConfigError when the run is
    built, never a silent None.
    """

    images: tuple[str, ...] = ("crop",)
    texts: tuple[str, ...] = ("caption",)
    masked: bool = False
