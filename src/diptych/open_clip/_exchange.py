"""Passing tensors to neighbors in a ring of processes, with gradients that travel back; open_clip's names and spelling.

SigLIP's loss sees the texts of all processes so, one process's at a time (Zhai et al. 2023, section 3.3).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def neighbour_exchange(from_rank: int, to_rank: int, tensor: Tensor, group: Any = None) -> Tensor:
    """Send ``tensor`` to one rank and receive one of the same shape from another; without gradient."""
    received = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    _exchange([(tensor, to_rank)], [(received, from_rank)], group)
    return received


def neighbour_exchange_bidir(
    left_rank: int, right_rank: int, tensor_to_left: Tensor, tensor_to_right: Tensor, group: Any = None
) -> tuple[Tensor, Tensor]:
    """Send to both neighbors at once; what comes from the right, and from the left. Without gradient."""
    from_left = torch.empty_like(tensor_to_right, memory_format=torch.contiguous_format)
    from_right = torch.empty_like(tensor_to_left, memory_format=torch.contiguous_format)
    # Right before left on both sides: with two processes both neighbors are one rank, and messages pair up in order.
    sent = [(tensor_to_right, right_rank), (tensor_to_left, left_rank)]
    _exchange(sent, [(from_left, left_rank), (from_right, right_rank)], group)
    return from_right, from_left


def _exchange(sent: list[tuple[Tensor, int]], received: list[tuple[Tensor, int]], group: Any) -> None:
    operations = [dist.P2POp(dist.isend, tensor.contiguous(), rank, group=group) for tensor, rank in sent]
    operations += [dist.P2POp(dist.irecv, tensor, rank, group=group) for tensor, rank in received]
    for work in dist.batch_isend_irecv(operations):
        work.wait()


class NeighbourExchange(torch.autograd.Function):
    """``neighbour_exchange``; gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, from_rank: int, to_rank: int, group: Any, tensor: Tensor) -> Tensor:
        """The tensor that was received."""
        ctx.from_rank, ctx.to_rank, ctx.group = from_rank, to_rank, group
        return neighbour_exchange(from_rank, to_rank, tensor, group)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:  # type: ignore[override]
        """The gradient of the tensor that was sent."""
        return None, None, None, NeighbourExchange.apply(ctx.to_rank, ctx.from_rank, ctx.group, grad_output)


class NeighbourExchangeBidir(torch.autograd.Function):
    """``neighbour_exchange_bidir``; gradients go the other way."""

    @staticmethod
    def forward(
        ctx: Any, left_rank: int, right_rank: int, group: Any, tensor_to_left: Tensor, tensor_to_right: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What came from the right, and from the left."""
        ctx.left_rank, ctx.right_rank, ctx.group = left_rank, right_rank, group
        return neighbour_exchange_bidir(left_rank, right_rank, tensor_to_left, tensor_to_right, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        """The gradients of the tensors that were sent to the left and to the right."""
        # What came from the right was its tensor to the left: the gradient goes there, and the left one's comes back.
        to_left, to_right = NeighbourExchangeBidir.apply(ctx.right_rank, ctx.left_rank, ctx.group, *grad_outputs)
        return None, None, None, to_left, to_right


def neighbour_exchange_with_grad(from_rank: int, to_rank: int, tensor: Tensor, group: Any = None) -> Tensor:
    """``neighbour_exchange`` with gradient."""
    return NeighbourExchange.apply(from_rank, to_rank, group, tensor)  # type: ignore[no-any-return]


def neighbour_exchange_bidir_with_grad(
    left_rank: int, right_rank: int, tensor_to_left: Tensor, tensor_to_right: Tensor, group: Any = None
) -> tuple[Tensor, Tensor]:
    """``neighbour_exchange_bidir`` with gradient."""
    return NeighbourExchangeBidir.apply(left_rank, right_rank, group, tensor_to_left, tensor_to_right)  # type: ignore[no-any-return]
