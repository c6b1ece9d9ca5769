"""Zero gradients for parameters that a pass does not use: replicas and shards wait for the gradient of each of them.

Not part of any loss: values and gradients of what is used stay as they are.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Zero(torch.autograd.Function):
    """Neither pass reads the parameters, whose heads may be larger than the towers."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return torch.zeros((), device=parameters[0].device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(item.new_zeros(()).expand(item.shape) for item in ctx.saved_tensors)


def zero_of(parameters: Sequence[Tensor]) -> Tensor:
    """A zero, a scalar, that depends on the parameters: its backward pass gives each a gradient of zeros."""
    return _Zero.apply(*parameters) if parameters else torch.zeros(())  # type: ignore[no-any-return, no-untyped-call]


def unreached(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Those of the trained parameters that no loss depends on. Heads lie next to losses: few nodes of the graph are visited."""
    missing = {id(item): item for item in parameters if item.requires_grad}
    nodes = collections.deque(item.grad_fn for item in losses if item.grad_fn is not None)
    seen: set[Any] = set(nodes)
    while nodes and missing:
        for node, _ in nodes.popleft().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                missing.pop(id(getattr(node, "variable", None)), None)
                nodes.append(node)
    return list(missing.values())
