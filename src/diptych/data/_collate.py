"""Samples become a batch: pixels stacked as uint8, captions padded to the longest of the batch, or as a layout plans them.

No floating-point pixels: normalizing is the image tower's. Ends of texts are those the tokenizer gave, never searched for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diptych.data._shared_memory import pixel_buffer, to_main_process
from diptych.text import TextLayout
from diptych.types import IGNORED, Batch, MaskedTokens, Sample


def collate(samples: Sequence[Sample], epoch: int = 0, pad_id: int = 0, layout: TextLayout | None = None) -> Batch:
    """B samples of an epoch -> a Batch (shapes in ``types.Batch``), short captions filled with the tokenizer's ``pad_id``.

    With a ``layout`` captions are padded to its length and planned, and ids outside of its vocabulary are a DataError. Raises
    ValueError where only some samples have features or masks.
    """
    views, count = len(samples[0].tokens), len(samples)
    longest = max((len(ids) for sample in samples for ids in sample.tokens), default=0)
    if layout is not None and views:
        longest = layout.padded(longest)
    tokens = np.full((views, count, longest), pad_id, dtype=np.int64)
    for row, sample in enumerate(samples):
        for view, ids in enumerate(sample.tokens):
            tokens[view, row, : len(ids)] = ids
    lengths = np.array([sample.lengths for sample in samples], dtype=np.int64).reshape(count, views).T
    plans = None
    if layout is not None:
        layout.check_ids(tokens)
        plans = tuple(layout.plan(torch.from_numpy(np.ascontiguousarray(item)), longest) for item in lengths)
    return Batch(
        images=_pixels(samples),
        tokens=torch.from_numpy(tokens),
        lengths=torch.from_numpy(np.ascontiguousarray(lengths)),
        keys=tuple(sample.key for sample in samples),
        indices=_integers([sample.index for sample in samples]),
        seeds=_integers([sample.seed for sample in samples]),
        groups=_integers([sample.group for sample in samples]),
        labels=_labels(samples),
        masked=_masked(samples, longest, pad_id),
        epoch=epoch,
        num_truncated=sum(sample.num_truncated for sample in samples),
        image_features=_features(samples),
        plans=plans,
    )


def _integers(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _pixels(samples: Sequence[Sample]) -> torch.Tensor:
    shape = (len(samples[0].images), len(samples), *samples[0].images.shape[1:])
    if not samples[0].images.size:
        return torch.empty(shape, dtype=torch.uint8)
    pixels = pixel_buffer(shape)
    for row, sample in enumerate(samples):
        pixels[:, row] = sample.images
    return to_main_process(pixels)


def _masked(samples: Sequence[Sample], longest: int, pad_id: int) -> MaskedTokens | None:
    """Masked ids and targets padded like the batch's tokens; padding is never predicted."""
    given = [sample.masked for sample in samples if sample.masked is not None]
    if not given:
        return None
    if len(given) != len(samples):
        raise ValueError(f"{len(given)} of {len(samples)} samples have masked tokens: all or none are expected")
    tokens = np.full((len(samples), longest), pad_id, dtype=np.int64)
    targets = np.full((len(samples), longest), IGNORED, dtype=np.int64)
    for row, masked in enumerate(given):
        tokens[row, : len(masked.tokens)] = masked.tokens
        targets[row, : len(masked.targets)] = masked.targets
    return MaskedTokens(torch.from_numpy(tokens), torch.from_numpy(targets))


def _features(samples: Sequence[Sample]) -> torch.Tensor | None:
    given = [sample.features for sample in samples if sample.features is not None]
    if not given:
        return None
    if len(given) != len(samples):
        raise ValueError(f"{len(given)} of {len(samples)} samples have precomputed features: all or none are expected")
    return torch.from_numpy(np.stack(given))


def _labels(samples: Sequence[Sample]) -> torch.Tensor | None:
    if any(sample.label is None for sample in samples):
        return None
    return torch.tensor([sample.label for sample in samples], dtype=torch.int64)
