"""A queue of the newest features of past steps, in which nearest neighbors are searched: the support set of NNCLR (Dwibedi et al.
2021, "With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual Representations").

State of an objective: buffers, in checkpoints, the same in every process, since what is pushed is gathered first. First in,
first out; a push that passes the end goes on at the beginning. Not a memory of records: nothing says where a row came from.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 1 << 24  # similarities of a search that are held at once


class FeatureQueue(nn.Module):
    """Buffers ``entries`` [size, width] of unit length, in fp32, and ``position`` int64 [1], where the next push begins.

    They begin as random directions, drawn from torch's generator. ``drops_rest``: a push that passes the end loses what does
    not fit, as in DeCLIP's code.
    """

    entries: Tensor
    position: Tensor

    def __init__(self, size: int, width: int, drops_rest: bool = False) -> None:
        super().__init__()
        self.register_buffer("entries", F.normalize(torch.randn(size, width, dtype=torch.float32), dim=1))
        self.register_buffer("position", torch.zeros(1, dtype=torch.int64))
        self.drops_rest = drops_rest

    @torch.no_grad()
    def nearest(self, features: Tensor, count: int = 1) -> Tensor:
        """The ``count`` entries of the highest cosine with each of B features of unit length [B, width], nearest first,
        [B, count, width] in the features' type, without gradient.
        """
        entries = self.entries.to(features.dtype)
        with torch.autocast(features.device.type, enabled=False):
            parts = features.detach().split(max(1, TILE // len(entries)))
            indices = torch.cat([(part @ entries.T).topk(count, dim=1).indices for part in parts])
        return entries[indices]

    @torch.no_grad()
    def push(self, features: Tensor) -> None:
        """Write N features [N, width], N at most the size, over the oldest entries, in their order."""
        indices = self.position + torch.arange(len(features), device=features.device)
        size = len(self.entries)
        rows, values = indices % size, features.to(self.entries.dtype)
        if self.drops_rest:
            fits = indices < size
            values = torch.where(fits[:, None], values, self.entries[rows])
            indices = indices.clamp(max=size - 1)
        self.entries[rows] = values
        self.position.copy_((indices[-1:] + 1) % size)
