"""Gathering keeps rank order and carries the summed gradient home."""

import torch

from diptych.distributed import process_group
from diptych.distributed.gather import gather, gather_with_gradient, rank_offset

from ._processes import run_in_processes


def test_alone_it_is_the_identity():
    local = torch.randn(3, 2, requires_grad=True)
    assert gather_with_gradient(local) is local
    assert gather(local) is local
    assert rank_offset(3) == 0


def _gather_and_pull() -> tuple[list[float], list[float], int]:
    rank = process_group.world_from_environment().rank
    local = torch.tensor([[1.0 + rank]], requires_grad=True)
    everything = gather_with_gradient(local)
    # Rank r weighs row j by (r + 1) * 10^j: the gradient that comes home is the sum over ranks.
    weights = torch.tensor([[1.0], [10.0]]) * (rank + 1)
    (everything * weights).sum().backward()
    return everything.flatten().tolist(), local.grad.flatten().tolist(), rank_offset(1)


def test_rows_come_in_rank_order_and_gradients_add_up():
    assert run_in_processes(2, _gather_and_pull) == [([1.0, 2.0], [3.0], 0), ([1.0, 2.0], [30.0], 1)]
