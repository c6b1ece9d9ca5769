"""What objectives and the step take of a batch: the seeds and texts of a view, and the pairs that ``compare`` sees.

No formula and no parameter is here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diptych.errors import ConfigError
from diptych.types import Batch, Encoded, Pairs

_VIEW_STRIDE = 0x2545F4914F6CDD1D  # odd: seeds of different views of one pair never coincide by a small shift


def view_seeds(batch: Batch, view: int) -> Tensor:
    """Seeds int64 [B] of one view of each pair, from which a tower's random draws are made."""
    return batch.seeds if view == 0 else batch.seeds + (view * _VIEW_STRIDE) % (1 << 62)


def text_of(
    tower: Any, batch: Batch, view: int = 0, *, ids: Tensor | None = None, return_tokens: bool = False
) -> Encoded:
    """What a text tower gives of a text view, by the batch's plan; ``ids`` int64 [B, L] in place of the view's, of its lengths.

    Ids that were padded further than the batch's own have no plan.
    """
    ids = batch.tokens[view] if ids is None else ids
    planned = {}
    if batch.plans is not None and tower.takes_plans and ids.shape == batch.tokens.shape[1:]:
        planned["plan"] = batch.plans[view]
    seeds = view_seeds(batch, view)
    return tower(ids, batch.lengths[view], return_tokens=return_tokens, seeds=seeds, **planned)  # type: ignore[no-any-return]


def differentiable(item: Tensor | None) -> bool:
    """Whether a field of the features carries a gradient."""
    return item is not None and item.is_floating_point()


def pairs_of(batches: Sequence[Batch]) -> Pairs:
    """What ``compare`` sees of the micro-batches of a step, in their order."""
    first = batches[0]
    return Pairs(
        keys=tuple(key for batch in batches for key in batch.keys),
        indices=torch.cat([batch.indices for batch in batches]),
        seeds=torch.cat([batch.seeds for batch in batches]),
        groups=torch.cat([batch.groups for batch in batches]),
        labels=None if first.labels is None else torch.cat([_labels(batch) for batch in batches]),
        epoch=first.epoch,
    )


def _labels(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise ConfigError("some micro-batches of a step have labels and others have none; give every record one.")
    return batch.labels
