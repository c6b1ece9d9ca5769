"""Samples become a batch: pixels stacked as uint8, captions padded to the longest one here.

Not a place for floating-point numbers: normalising is the image tower's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diptych.data._shared_memory import room, sent
from diptych.types import Batch, Sample


def collate(samples: Sequence[Sample]) -> Batch:
    """B samples -> a Batch (shapes in ``types.Batch``)."""
    texts, count = len(samples[0].tokens), len(samples)
    longest = max(len(ids) for sample in samples for ids in sample.tokens)
    tokens = np.zeros((texts, count, longest), dtype=np.int64)
    lengths = np.empty((texts, count), dtype=np.int64)
    for place, sample in enumerate(samples):
        for view, ids in enumerate(sample.tokens):
            tokens[view, place, : len(ids)] = ids
            lengths[view, place] = sample.lengths[view]
    return Batch(
        images=_pixels(samples),
        tokens=torch.from_numpy(tokens),
        lengths=torch.from_numpy(lengths),
        masked=None,
        indices=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        seeds=torch.tensor([sample.seed for sample in samples], dtype=torch.int64),
        labels=_labels(samples),
        keys=tuple(sample.key for sample in samples),
        groups=torch.tensor([sample.group for sample in samples], dtype=torch.int64),
        num_truncated=sum(sample.num_truncated for sample in samples),
        image_features=_features(samples),
    )


def _pixels(samples: Sequence[Sample]) -> torch.Tensor:
    shape = (len(samples[0].images), len(samples), *samples[0].images.shape[1:])
    if not samples[0].images.size:
        return torch.empty(shape, dtype=torch.uint8)
    pixels = room(shape)
    for place, sample in enumerate(samples):
        pixels[:, place] = sample.images
    return sent(pixels)


def _features(samples: Sequence[Sample]) -> torch.Tensor | None:
    known = [sample.features for sample in samples if sample.features is not None]
    return torch.from_numpy(np.stack(known)) if len(known) == len(samples) else None


def _labels(samples: Sequence[Sample]) -> torch.Tensor | None:
    if any(sample.label is None for sample in samples):
        return None
    return torch.tensor([sample.label for sample in samples], dtype=torch.int64)
