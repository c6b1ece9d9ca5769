"""Self-supervised terms that stand beside a contrastive loss: two views of an image, and masked tokens of a text.

NT-Xent (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations", SimCLR), the negative cosine
similarity of SimSiam (Chen and He 2021, "Exploring Simple Siamese Representation Learning"), and the cross-entropy of masked
tokens (Devlin et al. 2019, "BERT"). Pure functions; heads are in ``_heads``, and which tokens are masked is the data's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.distributed.gather import gather, rank_offset
from diptych.distributed.process_group import Group, size
from diptych.objectives._terms import full_precision, gathered, row_contrastive, unit


def nt_xent(first: Tensor, second: Tensor, temperature: float, group: Group) -> tuple[Tensor, Tensor]:
    """NT-Xent of two views [B, D] of each image, not normalized: a scalar in nats, and the share of anchors that are right.

    Each of the 2 B features of this process is an anchor; its positive is the other view of its image, its negatives are both
    views of all other images of all processes, 2 W B - 2. Mean over anchors; gradients cross processes.
    """
    with torch.autocast(first.device.type, enabled=False):
        own = unit(first), unit(second)
        everything = [gathered(item, group) for item in own]
        # The class of a column is its image: of an anchor's image only the other view stays, which is its own column.
        classes = torch.arange(len(everything[0]), device=first.device).repeat(2)
        scale, offset = own[0].new_full((1,), 1 / temperature), rank_offset(len(first), group)
        loss, correct = row_contrastive(own[0], torch.cat(everything[::-1]), scale, offset, classes=classes)
        other_loss, other_correct = row_contrastive(own[1], torch.cat(everything), scale, offset, classes=classes)
    return (loss + other_loss) / 2, (correct + other_correct) / 2


def simsiam(predictions: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """SimSiam's loss, a scalar from -1 (best) to 1: each view's prediction [B, D] against the other view's target [B, D].

    Minus the cosine similarity, the mean over pairs and both directions; no gradient flows to the targets.
    """
    with torch.autocast(predictions[0].device.type, enabled=False):
        cosines = [
            (unit(prediction) * unit(target.detach())).sum(dim=1).mean()
            for prediction, target in zip(predictions, reversed(targets), strict=True)
        ]
        return -(cosines[0] + cosines[1]) / 2


def masked_token_sums(
    states: Tensor, targets: Tensor, head: nn.Module, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Of each text the sum of its predicted tokens' cross-entropies in nats, [B], and how many are predicted, int64 [B].

    ``states`` [B, L, width] of a text tower that saw masked ids; ``targets`` int64 [B, L], negative where nothing is predicted.
    ``head`` takes states to logits; it is computed at predicted positions only. Pair by pair, so it can run in micro-batches.
    ``positions``: those of the predicted tokens in the flattened targets, int64 [M], in their order; without them the host waits
    to learn how many there are.
    """
    predicted = targets >= 0
    if positions is None:
        positions = predicted.flatten().nonzero()[:, 0]
    logits = full_precision(head(states.flatten(0, 1)[positions]))
    with torch.autocast(states.device.type, enabled=False):
        each = F.cross_entropy(logits, targets.flatten()[positions], reduction="none")
        # Not by index_add, which adds in no fixed order on some devices.
        sums = logits.new_zeros(targets.numel()).index_copy(0, positions, each).view_as(targets).sum(dim=1)
    return sums, predicted.sum(dim=1)


def masked_token_loss(sums: Tensor, counts: Tensor, group: Group, *, local: bool = False) -> Tensor:
    """The mean over predicted tokens of what ``masked_token_sums`` gave, a scalar in nats; exactly 0 where none is.

    It is the mean over the tokens of all processes, given as this process's share times the number of processes, so that the mean
    of all shares is the loss. ``local`` divides by this process's own count instead: tokens of different processes then weigh
    differently.
    """
    if local:
        return sums.sum() / counts.sum().clamp(min=1)
    return sums.sum() * size(group) / gather(counts.sum()[None], group).sum().clamp(min=1)
