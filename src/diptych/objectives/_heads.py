"""Heads of objectives that look across pairs: batch normalization over the pairs of all processes, and the MLP around it.

They live in ``compare``, which sees the whole batch once a step, so that micro-batches do not change them. Statistics are taken
over the layout's group, so that several processes equal one. Not ``torch.nn.SyncBatchNorm``, which runs on accelerators only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diptych.distributed.gather import all_reduce_with_gradient
from diptych.distributed.process_group import Group, size
from diptych.objectives._terms import full_precision


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch normalization (Ioffe and Szegedy 2015) of [B, D] over the pairs of all processes of a group, in fp32 or more.

    Every process brings the same B. ``group_of`` gives the group when it is called: the layout sets it later.
    """

    def __init__(self, width: int, group_of: Callable[[], Group], affine: bool = True) -> None:
        super().__init__(width, affine=affine)
        self.group_of = group_of

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, D]; in training by the batch's own statistics, else by the running ones."""
        with torch.autocast(features.device.type, enabled=False):
            exact = full_precision(features)
            if not self.training:
                return super().forward(exact)
            group = self.group_of()
            count = len(exact) * size(group)
            mean = all_reduce_with_gradient(exact.sum(dim=0), group) / count
            centered = exact - mean
            variance = all_reduce_with_gradient(centered.square().sum(dim=0), group) / count
            self._update(mean.detach(), variance.detach(), count)
            normalized = centered * torch.rsqrt(variance + self.eps)
            return normalized if self.weight is None else normalized * self.weight + self.bias

    def _update(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum or 0.0)
            unbiased = variance * (count / max(1, count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum or 0.0)


def projection_head(widths: Sequence[int], group_of: Callable[[], Group], last_norm: bool = False) -> nn.Sequential:
    """Linear, norm and ReLU from width to width, the last one linear (SimCLR's and SimSiam's head).

    ``widths`` has at least two entries, the input first; ``last_norm`` adds a norm without weights at the end (SimSiam).
    """
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        last = number == len(widths) - 2
        layers.append(nn.Linear(before, after, bias=last and not last_norm))
        if not last:
            layers += [GlobalBatchNorm(after, group_of), nn.ReLU()]
        elif last_norm:
            layers.append(GlobalBatchNorm(after, group_of, affine=False))
    return nn.Sequential(*layers)
