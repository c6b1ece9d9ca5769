"""Running statistics of batch normalization: kept as they are through a forward pass that is computed twice.

Feature-cached accumulation and activation checkpointing both run a forward pass more than once per step; statistics must move
once. Knows no step and no checkpointing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

Statistics = list[tuple[Tensor, Tensor]]
"""Buffers, and copies of what they held."""


def statistics_of(module: nn.Module) -> Statistics:
    """The running statistics in a module, and copies of them."""
    norms = [item for item in module.modules() if isinstance(item, nn.modules.batchnorm._BatchNorm)]
    return [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]


def running_statistics(module: nn.Module) -> dict[str, Tensor]:
    """The running means and variances in a module by name, themselves; not the counts of batches."""
    return {
        f"{name}.{own}" if name else own: buffer
        for name, item in module.named_modules()
        if isinstance(item, nn.modules.batchnorm._BatchNorm)
        for own, buffer in item.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }


@torch.no_grad()
def put_back(saved: Statistics, unless: Tensor | None = None) -> None:
    """Give the buffers what they held; ``unless``, a bool scalar on their device, says that they stay as they are."""
    for buffer, value in saved:
        buffer.copy_(value if unless is None else torch.where(unless, buffer, value))


@contextlib.contextmanager
def restored_statistics(module: nn.Module) -> Iterator[None]:
    """Batch normalization normalizes as in training, but its running statistics are afterwards what they were."""
    saved = statistics_of(module)
    try:
        yield
    finally:
        put_back(saved)
