"""Batch normalization of maps over the images of all processes, so that several processes normalize as one.

torch's ``SyncBatchNorm`` runs on accelerators only; this one is made of products and sums, runs everywhere, and keeps names,
weights and running statistics as they are. Micro-batches are still normalized one by one: their images are never in memory
together. Heads of objectives have a norm of their own (``objectives._heads``), which sees the whole step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diptych.distributed.gather import all_reduce_with_gradient
from diptych.distributed.process_group import Group, size


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization (Ioffe and Szegedy 2015) of [B, C, H, W] over the images of a group of processes, in fp32 or more.

    Every process brings as many images of the same size.
    """

    group: Any = None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]; in training by the statistics of all processes, else by the running ones."""
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            exact = x.to(torch.promote_types(x.dtype, torch.float32))
            count = exact.numel() // exact.shape[1] * size(self.group)
            mean = all_reduce_with_gradient(exact.sum(dim=(0, 2, 3)), self.group) / count
            centered = exact - mean[:, None, None]
            variance = all_reduce_with_gradient(centered.square().sum(dim=(0, 2, 3)), self.group) / count
            self._update(mean.detach(), variance.detach() * (count / max(1, count - 1)))
            factor = torch.rsqrt(variance + self.eps) * self.weight
            return (centered * factor[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum or 0.0)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum or 0.0)


def synchronize(model: nn.Module, group: Group) -> int:
    """Let every ``BatchNorm2d`` of a model normalize over a group, in place; how many there were."""
    norms: list[Any] = [item for item in model.modules() if type(item) is nn.BatchNorm2d]
    for norm in norms:
        norm.__class__, norm.group = GlobalBatchNorm2d, group
    return len(norms)
