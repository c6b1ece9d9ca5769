"""Heads of objectives that look across pairs: batch normalization over the pairs of all processes, and the MLP around it.

They live in ``compare``, which sees the whole batch once a step, so that micro-batches do not change them. Statistics are taken
over the layout's group, so that several processes equal one. Not ``torch.nn.SyncBatchNorm``, which runs on accelerators only.
``LocalBatchNorm`` is the form of programs that do not synchronize: another result for every number of processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from diptych.distributed.gather import all_reduce_with_gradient
from diptych.distributed.process_group import Group, size
from diptych.errors import ConfigError
from diptych.models import TwoTower
from diptych.objectives._terms import full_precision

Norm = Literal["batch", "layer", "none"]
"""What normalizes a head's hidden layers: the statistics of the batch, those of each pair alone, or nothing."""

FEWEST_PAIRS = 32  # SLIP's authors see chance level with 8 pairs to normalize over (issue 7 of facebookresearch/SLIP)


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


class LocalBatchNorm(nn.BatchNorm1d):
    """Batch normalization of [B, D] over this process's pairs alone, in fp32 or more: several processes do not equal one."""

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, D]; in training by the process's own statistics, else by the running ones."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(full_precision(features))


def projection_head(
    widths: Sequence[int],
    group_of: Callable[[], Group],
    last_norm: bool = False,
    *,
    norm: Norm = "batch",
    synchronized: bool = True,
) -> nn.Sequential:
    """Linear, norm and ReLU from width to width, the last one linear (SimCLR's and SimSiam's head).

    ``widths`` has at least two entries, the input first; ``last_norm`` adds a norm without weights at the end (SimSiam).
    ``norm`` of all norms: "layer" is LayerNorm, "none" leaves them out. ``synchronized`` False takes the statistics of "batch"
    over the pairs of each process alone.
    """
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        last = number == len(widths) - 2
        normed = last_norm if last else True
        # Batch normalization takes a bias before it away; the other norms do not.
        layers.append(nn.Linear(before, after, bias=norm != "batch" or not normed))
        if normed and norm == "layer":
            layers.append(nn.LayerNorm(after, elementwise_affine=not last))
        elif normed and norm == "batch":
            layers.append(
                GlobalBatchNorm(after, group_of, affine=not last)
                if synchronized
                else LocalBatchNorm(after, affine=not last)
            )
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def check_norm(norm: Norm, pairs: int) -> None:
    """Raise ConfigError where a step has too few ``pairs`` a process for batch normalization in a head; 0 is not known."""
    if norm == "batch" and 0 < pairs < FEWEST_PAIRS:
        raise ConfigError(
            f"--ssl-norm batch: {pairs} pairs of a process and step are too few to normalize over, expected at least "
            f"{FEWEST_PAIRS}; raise --batch-size or --accum-freq, or give --ssl-norm layer."
        )


def state_width(model: TwoTower) -> int:
    """The width of the image tower's state before its projection, asked of the tower itself with one black image."""
    side, device = model.config.vision.image_size, model.logit_scale.device
    black = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad():
        width = int(model.eval().image(black).state.shape[-1])
    for module, training in modes:  # each its own: a locked tower stays in evaluation mode
        module.training = training
    return width
