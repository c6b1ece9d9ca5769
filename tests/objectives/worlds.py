"""Batches out of nothing, for the objectives' contract tests."""

import torch

from diptych.types import Batch, Wants

END = 49407


def make_batch(pairs=6, wants=None, seed=0, size=32):
    """A batch of ``pairs`` with captions of several lengths."""
    wants = wants or Wants()
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(wants.images), pairs, 3, size, size), generator=generator, dtype=torch.uint8)
    lengths = torch.randint(3, 12, (len(wants.texts), pairs), generator=generator)
    tokens = torch.randint(1, 49000, (len(wants.texts), pairs, 12), generator=generator)
    for view in range(len(wants.texts)):
        for row, length in enumerate(lengths[view].tolist()):
            tokens[view, row, length - 1] = END
            tokens[view, row, length:] = 0
    keys = tuple(f"k{number}" for number in range(pairs))
    rows = torch.arange(pairs)
    return Batch(images, tokens, lengths, keys, rows, rows + 1000 * seed, rows)


def rows_of(batch, start, stop):
    """The pairs from start to stop, as a batch of their own."""
    return batch._replace(
        images=batch.images[:, start:stop], tokens=batch.tokens[:, start:stop], lengths=batch.lengths[:, start:stop],
        keys=batch.keys[start:stop], groups=batch.groups[start:stop],
        indices=batch.indices[start:stop], seeds=batch.seeds[start:stop],
    )  # fmt: skip
