"""Gathering features from all processes so that a contrastive loss sees every pair, with the true gradient; and a ring.

Forward: each process contributes [B, D] and receives [W*B, D], in rank order. Backward: the gradients that all processes
hold for our slice are summed. With losses that are means over local rows, and parameter gradients averaged over
processes, the result is the gradient of the loss over the whole global batch (a test holds this to rounding).
At world size 1 both are the identity. Every process must bring the same B; the loader sees to that. ``passed_on`` moves a
tensor to the next process, for what need not be held whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diptych.distributed.process_group import Group, rank, size


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, local: Tensor, group: Group) -> Tensor:
        context.group = group
        return gather(local, group)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # All-reduce and slice instead of reduce-scatter: every backend has it, gloo and vendors' included.
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=context.group)
        return total.chunk(size(context.group))[rank(context.group)], None


def gather(local: Tensor, group: Group = None) -> Tensor:
    """[B, ...] of each process -> [W*B, ...] in rank order, without gradient."""
    if size(group) == 1:
        return local
    local = local.contiguous()
    pieces = [torch.empty_like(local) for _ in range(size(group))]
    dist.all_gather(pieces, local, group=group)
    return torch.cat(pieces)


def gather_rows(local: Tensor, group: Group = None) -> Tensor:
    """[n, ...] of each process, n its own -> all rows in rank order, without gradient."""
    if size(group) == 1:
        return local
    counts = gather(torch.tensor([len(local)], device=local.device), group).tolist()
    padded = local.new_zeros(max(counts), *local.shape[1:])
    padded[: len(local)] = local
    pieces = gather(padded, group).split(max(counts))
    return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])


def gather_with_gradient(local: Tensor, group: Group = None) -> Tensor:
    """[B, ...] of each process -> [W*B, ...] in rank order; gradients flow back to the process that each row came from."""
    return local if size(group) == 1 else _GatherWithGradient.apply(local, group)


def rank_offset(rows: int, group: Group = None) -> int:
    """Where our rows begin in a gathered tensor, for ``rows`` rows per process."""
    return rows * rank(group)


class _AllReduceWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, local: Tensor, group: Group) -> Tensor:
        context.group = group
        total = local.detach().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=context.group)
        return total, None


def all_reduce_with_gradient(local: Tensor, group: Group = None) -> Tensor:
    """The sum of a tensor over processes; the gradients that all processes hold for it are summed on the way back."""
    return local if size(group) == 1 else _AllReduceWithGradient.apply(local, group)  # type: ignore[no-any-return]


def passed_on(local: Tensor, group: Group = None) -> Callable[[], Tensor]:
    """Begin to send a tensor to the next rank (the last to the first), without gradient; call the result for the previous rank's.

    Of the same shape and type on every process. ``local`` must stay as it is until the call returns.
    """
    if size(group) == 1:
        return lambda: local
    local, received = local.contiguous(), torch.empty_like(local, memory_format=torch.contiguous_format)
    following, previous = ((rank(group) + step) % size(group) for step in (1, -1))
    if group is not None:
        following, previous = dist.get_global_rank(group, following), dist.get_global_rank(group, previous)
    work = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, local, following, group), dist.P2POp(dist.irecv, received, previous, group)]
    )

    def wait() -> Tensor:
        for item in work:
            item.wait()
        return received

    return wait
