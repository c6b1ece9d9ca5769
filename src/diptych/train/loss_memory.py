"""What the contrastive and the sigmoid loss hold at their worst moment, as formulas of their code; tests measure the same.

Features are fp32 whatever the towers ran in. Heads of other objectives are not in here.
"""

from __future__ import annotations

from dataclasses import dataclass

from diptych.objectives import MATRIX_LIMIT, STORED, TILE

FP32 = 4  # bytes


@dataclass(frozen=True)
class LossMemory:
    """Bytes of a loss: ``features`` of own and of all pairs with their gradients, ``logits`` or tiles of them."""

    features: int
    logits: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.features + self.logits


def loss_memory(objective: str, pairs: int, processes: int, width: int) -> LossMemory:
    """Of ``pairs`` of this process among those of ``processes``, features of ``width``; CLIP's for all objectives but siglip."""
    return (sigmoid_memory if objective == "siglip" else contrastive_memory)(pairs, processes, width)


def contrastive_memory(pairs: int, processes: int, width: int) -> LossMemory:
    """CLIP's loss: both sides gathered, a matrix for each direction unless own pairs are all there are, whole or in tiles."""
    everything = pairs * processes
    own = 3 * 2 * pairs * width  # features, their gradients, and those before they are multiplied with the scale
    if processes > 1:
        own += (2 + 2 + 1) * everything * width  # of all: features, gradients, and one of these in exchange
    directions = 1 if processes == 1 else 2
    matrix = pairs * everything
    if matrix <= MATRIX_LIMIT:
        return LossMemory(FP32 * own, FP32 * 4 * matrix)
    stored = directions * matrix if matrix <= STORED else 0
    # One to compute in, one of similarities that are not stored, one for sums of columns where both directions share a matrix.
    tiles = 1 + (1 if matrix > STORED else 0) + (1 if directions == 1 else 0)
    return LossMemory(FP32 * own, FP32 * (stored + tiles * max(TILE, everything)))


def sigmoid_memory(pairs: int, processes: int, width: int) -> LossMemory:
    """SigLIP's loss: features, the gradients that its forward pass makes, those that pass by; tiles of logits."""
    own = 2 * 2 * pairs * width
    if processes > 1:
        own += 4 * pairs * width  # a chunk of texts and the next, the gradient that travels and the next
    tiles = 2 * min(max(TILE, pairs), pairs * pairs)
    # Tiles are gone when the gradients are multiplied with the loss's own.
    return LossMemory(FP32 * own, FP32 * max(tiles, 2 * pairs * width))
