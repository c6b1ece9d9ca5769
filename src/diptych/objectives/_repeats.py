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
from diptych.objectives._base import ObjectiveOptions
from diptych.objectives._terms import Features
from diptych.types import Batch


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

    A collective; every process gets the same numbers. L may differ between processes.
    """
    longest = int(gather(torch.tensor([ids.shape[1]], device=ids.device), group).max())
    everything = gather(F.pad(ids, (0, longest - ids.shape[1])), group)
    return torch.unique(everything, dim=0, return_inverse=True)[1]


def with_captions(features: Features, batch: Batch, options: RepeatOptions) -> Features | CaptionedFeatures:
    """The features with the ids of the first text view, where the options compare captions; else the features themselves."""
    return CaptionedFeatures(*features, caption_ids(batch)) if options.compares_captions else features


def classes_of(features: Features | CaptionedFeatures, group: Group) -> Tensor | None:
    """``caption_classes`` of the global batch, None where captions are not compared. A collective."""
    return caption_classes(features.captions, group) if isinstance(features, CaptionedFeatures) else None
