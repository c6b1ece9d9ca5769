"""One call of each function that needs several processes, in both packages; run in each process of a group. No tests."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch

from diptych.distributed import process_group

SIZE = 3


def _values(tensor: torch.Tensor | None) -> Any:
    """Plain lists: tensors do not outlive the process that made them."""
    return None if tensor is None else tensor.tolist()


def _exchanged(call: Callable[..., Any], rank: int, *before: Any) -> list[Any]:
    """What came, and the gradient of what was sent where there is one."""
    sent = torch.full((2, 3), float(rank + 1), requires_grad=True)
    received = call((rank - 1) % SIZE, (rank + 1) % SIZE, *before, sent)
    return _with_gradients(received, sent, rank)


def _exchanged_both_ways(call: Callable[..., Any], rank: int, *before: Any) -> list[Any]:
    first, second = (torch.full((2, 3), float(rank + number), requires_grad=True) for number in (1, 5))
    received = call((rank - 1) % SIZE, (rank + 1) % SIZE, *before, first, second)
    weighted = sum(item * (number + 2) for number, item in enumerate(received))
    return _with_gradients(weighted, first, rank) + [_values(item) for item in (*received, second.grad)]


def _with_gradients(received: Any, sent: torch.Tensor, rank: int) -> list[Any]:
    if received.requires_grad:
        (received * (rank + 1)).sum().backward()
    return [_values(received), _values(sent.grad)]


def _gathered(call: Callable[..., Any], rank: int) -> list[Any]:
    results: list[Any] = []
    for local, with_gradient in ((False, False), (True, True), (False, True)):
        first, second = (torch.full((2, 3), float(rank + number), requires_grad=True) for number in (1, 5))
        images, texts = call(first, second, local, with_gradient, rank, SIZE)
        (images * texts).sum().backward()
        results += [_values(item) for item in (images, texts, first.grad, second.grad)]
    return results


CALLS: dict[str, Callable[[Any, int], Any]] = {
    "gather_features": _gathered,
    "neighbour_exchange": _exchanged,
    "neighbour_exchange_with_grad": _exchanged,
    "neighbour_exchange_bidir": _exchanged_both_ways,
    "neighbour_exchange_bidir_with_grad": _exchanged_both_ways,
    "NeighbourExchange": lambda call, rank: _exchanged(call.apply, rank, None),
    "NeighbourExchangeBidir": lambda call, rank: _exchanged_both_ways(call.apply, rank, None),
}


def both() -> list[dict[str, Any]]:
    """The results of open_clip's functions and of ours, by name, in this process."""
    from benchmarks._peers import open_clip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = open_clip().loss
    ours = importlib.import_module("diptych.open_clip.loss")
    rank = process_group.world_from_environment().rank
    return [{name: call(getattr(module, name), rank) for name, call in CALLS.items()} for module in (theirs, ours)]
