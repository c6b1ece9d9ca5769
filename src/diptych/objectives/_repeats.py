"""Pairs of a step whose captions are the same: which they are, by token ids, so that a loss can leave them out as negatives.

Of two pairs with one caption each is a wrong negative of the other. Soft targets over the pairs of a class (Yang et al. 2022,
"Unified Contrastive Learning in Image-Text-Label Space") change nothing here: where captions are equal so are their features, and
then the cross-entropy with soft targets is CLIP's own, which a test shows. What changes something is to leave such pairs out.
Captions are equal when the text tower sees the same ids, after truncation. No likeness of meaning is looked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.distributed.gather import gather
from diptych.distributed.process_group import Group
from diptych.models import seeded_integers
from diptych.objectives._base import ObjectiveOptions
from diptych.objectives._terms import Features
from diptych.types import Batch

DIGEST = 1 << 20
"""The stream of numbers that digests of captions are made with, far from those of any layer."""


@dataclass(frozen=True)
class RepeatOptions(ObjectiveOptions):
    """What a loss makes of captions that occur several times in a step."""

    repeated_captions: Literal["negatives", "ignored"] = "negatives"
    """Pairs of a step with the same caption: negatives of each other, as published, or ignored."""

    @property
    def compares_captions(self) -> bool:
        """Whether captions must be compared."""
        return self.repeated_captions == "ignored"


class CaptionedFeatures(NamedTuple):
    """Unit-length features of pairs, ``image`` and ``text`` [B, D], with ``captions`` int64 [B, L] of ``caption_ids``."""

    image: Tensor
    text: Tensor
    captions: Tensor


def caption_ids(batch: Batch, view: int = 0) -> Tensor:
    """Token ids of one text view, int64 [B, L], each plus one, and 0 after the end: the same under any padding."""
    tokens = batch.tokens[view]
    real = torch.arange(tokens.shape[1], device=tokens.device) < batch.lengths[view][:, None]
    return torch.where(real, tokens + 1, 0)


def caption_classes(ids: Tensor, group: Group = None) -> Tensor:
    """A number of its caption for each pair of the global batch, int64 [W*B], equal where ``caption_ids`` [B, L] are equal.

    A collective; every process gets the same numbers. L may differ between processes. On a CPU the ids themselves are compared,
    elsewhere two digests of 63 bits, so that the host need not wait to learn how many captions differ.
    """
    if not ids.is_cpu:
        return _numbered(gather(_digests(ids), group))
    longest = int(gather(torch.tensor([ids.shape[1]]), group).max())
    everything = gather(F.pad(ids, (0, longest - ids.shape[1])), group)
    return torch.unique(everything, dim=0, return_inverse=True)[1]


def _digests(ids: Tensor) -> Tensor:
    """Two numbers for each of B captions, int64 [B, 2], made of its ``caption_ids`` [B, L] and where each stands."""
    keyed = (ids << 16) + torch.arange(ids.shape[1], device=ids.device)
    parts = seeded_integers(keyed.flatten(), DIGEST, 2).unflatten(0, ids.shape)
    return torch.where((ids > 0)[..., None], parts, 0).sum(dim=1)


def _numbered(digests: Tensor) -> Tensor:
    """Numbers int64 [N], equal where the rows of [N, 2] are."""
    order = torch.argsort(digests[:, 0], stable=True)
    ordered = digests[order]
    differs = torch.zeros_like(order)
    differs[1:] = (ordered[1:] != ordered[:-1]).any(dim=1).to(torch.int64)
    return torch.empty_like(order).scatter_(0, order, differs.cumsum(dim=0))


def with_captions(features: Features, batch: Batch, options: RepeatOptions) -> Features | CaptionedFeatures:
    """The features with the ids of the first text view, where the options compare captions; else the features themselves."""
    return CaptionedFeatures(*features, caption_ids(batch)) if options.compares_captions else features


def classes_of(features: Features | CaptionedFeatures, group: Group) -> Tensor | None:
    """``caption_classes`` of the global batch, None where captions are not compared. A collective."""
    return caption_classes(features.captions, group) if isinstance(features, CaptionedFeatures) else None
