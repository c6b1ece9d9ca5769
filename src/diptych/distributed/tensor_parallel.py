"""Tensor parallelism: each process of a group holds some heads of every attention and some columns of every MLP.

The scheme of Megatron-LM (Shoeybi et al. 2019): the first layer of a pair is cut by columns, the second by rows, so that what
is between them stays on its process. A block sums over processes four times, whatever its attention has: what attention and
MLP give, forward, and the gradients of what goes into them, backward. Weights are DTensors, so that checkpoints, shards and
norms of gradients know what is whole; the products are plain. Embeddings, norms and projections stay whole, and are the same
on all processes of a group, since what goes into them is. A ResNet has no such layers: its image tower stays whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Placement, Shard, distribute_tensor

from diptych.distributed._full_state import local
from diptych.errors import ConfigError

COLUMNS, ROWS = ("q", "k", "v", "mlp_in"), ("out", "mlp_out")


class _Enter(torch.autograd.Function):
    """Identity; backward, the sum of all processes' gradients, each of which knows its own columns only."""

    @staticmethod
    def forward(context: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        context.group = group
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total, group=context.group)
        return total, None


class _Leave(torch.autograd.Function):
    """The sum of all processes' products; backward, the identity: all of them go on with the same."""

    @staticmethod
    def forward(context: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class ColumnLinear(nn.Linear):
    """A ``Linear`` of which this process has some output columns; ``enter`` prepares its input, unless its owner does."""

    enter: Any

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., own columns]."""
        x = x if self.enter is None else self.enter(x)
        return F.linear(x, local(self.weight), None if self.bias is None else local(self.bias))


class RowLinear(nn.Linear):
    """A ``Linear`` of which this process has some input columns; its output is whole."""

    group: Any

    def forward(self, x: Tensor) -> Tensor:
        """[..., own columns] -> [..., width]."""
        whole = _Leave.apply(F.linear(x, local(self.weight)), self.group)
        return whole if self.bias is None else whole + self.bias.to(whole.dtype)


def split_parameters(tower: nn.Module) -> dict[str, int]:
    """The dimension along which each parameter that is split is divided, by the parameter's name in the tower."""
    split = {}
    for owner, module, _ in _owners(tower):
        for part in (*COLUMNS, *ROWS):
            layer = module._modules.get(part)
            if isinstance(layer, nn.Linear):
                name = f"{owner}.{part}" if owner else part
                split[f"{name}.weight"] = 1 if part in ROWS else 0
                if layer.bias is not None and part in COLUMNS:
                    split[f"{name}.bias"] = 0
    return split


def check_degree(tower: nn.Module, degree: int, name: str) -> None:
    """Raise ConfigError where heads or hidden columns of a tower do not divide."""
    for _, module, attends in _owners(tower):
        if attends:
            _check(module.q.out_features // module.head_width, degree, f"the {name} tower's attention has", "heads")
        if hasattr(module, "mlp_in"):
            _check(module.mlp_in.out_features, degree, f"the {name} tower's MLP has", "hidden columns")


def _owners(tower: nn.Module) -> Iterator[tuple[str, Any, bool]]:
    """(name, module, whether it attends) of every attention and MLP that can be split."""
    for name, module in tower.named_modules():
        attends = all(isinstance(getattr(module, part, None), nn.Linear) for part in ("q", "k", "v", "out"))
        if hasattr(module, "enter") and (attends or hasattr(module, "mlp_in")):
            yield name, module, attends


def split_tower(tower: nn.Module, mesh: DeviceMesh, name: str) -> None:
    """Split the attention and MLP layers of a tower over a mesh of one dimension, in place; names of parameters stay.

    Raises ConfigError where heads or hidden columns do not divide.
    """
    group = mesh.get_group()
    check_degree(tower, mesh.size(), name)
    for _, module, attends in list(_owners(tower)):
        if attends:
            module.enter = partial(_entered, group)
        for part in (*COLUMNS, *ROWS):
            layer = module._modules.get(part)
            if isinstance(layer, nn.Linear):
                _split(layer, part, mesh)


def _split(layer: Any, part: str, mesh: DeviceMesh) -> None:
    if part in ROWS:
        layer.__class__, layer.group = RowLinear, mesh.get_group()
        _distribute(layer, "weight", mesh, Shard(1))
        return
    # q, k and v have one input, which their attention prepares once.
    layer.__class__, layer.enter = ColumnLinear, partial(_entered, mesh.get_group()) if part == "mlp_in" else None
    _distribute(layer, "weight", mesh, Shard(0))
    if layer.bias is not None:
        _distribute(layer, "bias", mesh, Shard(0))


def _distribute(layer: nn.Module, name: str, mesh: DeviceMesh, placement: Placement) -> None:
    whole = getattr(layer, name)
    local = distribute_tensor(whole.detach(), mesh, [placement], src_data_rank=None)
    setattr(layer, name, nn.Parameter(local, requires_grad=whole.requires_grad))


def _entered(group: dist.ProcessGroup, x: Tensor) -> Tensor:
    return _Enter.apply(x, group)  # type: ignore[no-any-return]


def _check(count: int, degree: int, owner: str, what: str) -> None:
    if count % degree:
        raise ConfigError(
            f"--tensor-parallel-degree {degree}: {owner} {count} {what}, which {degree} processes cannot share evenly; "
            f"expected a divisor of {count}."
        )
