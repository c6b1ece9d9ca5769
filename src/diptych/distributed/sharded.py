"""An objective on a mesh of processes: its state sharded by FSDP2, its layers split by tensor parallelism, or both.

Every block of a tower is a unit of sharding, then each tower, then the objective with its heads. The stages are those of ZeRO
(Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models"), on torch's ``fully_shard``:

    stage3   parameters are gathered for a block's forward pass, again for its backward pass, and freed after each
    stage2   gathered once a pass, freed after backward; gradients are scattered after each micro-batch
    stage1   as stage2, but gradients stay whole until the last micro-batch scatters them; the same where there is only one

Parameters of one element (scales, biases) stay whole on every process, and their gradients are averaged once a step. With
fewer shards than processes (HSDP) each group of shards is a replica. Tensor parallel without shards averages all gradients at
the end of a step: DistributedDataParallel cannot hold split layers. No mixed precision of its own: the step's autocast is the
same as without, and weights in half precision are gathered, and their gradients scattered, as they are stored.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._pytree import tree_map

from diptych.devices import Device
from diptych.distributed._full_state import local
from diptych.distributed.layout import Layout
from diptych.distributed.master_weights import StoredWeights
from diptych.distributed.mesh import ParallelOptions, degrees_of
from diptych.distributed.process_group import World, all_reduce_mean, broadcast
from diptych.distributed.tensor_parallel import split_tower

NAMES = ("replicate", "shard", "tensor")


class ShardedLayout(Layout):
    """FSDP2, HSDP and tensor parallelism. Every encode call is a collective: processes that share a layer make the same ones."""

    collective = True

    def __init__(
        self,
        objective: Any,
        device: Device,
        world: World,
        options: ParallelOptions,
        stored: StoredWeights = StoredWeights(),  # noqa: B008
    ) -> None:
        self.stage, self.degrees = options.sharding, degrees_of(options, world)
        super().__init__(objective, device, world, stored)

    def wrap(self, objective: nn.Module) -> nn.Module:
        """Split and shard blocks, towers and the objective in place; names of parameters stay."""
        model: Any = self.objective.model
        # The device is said: torch would take any accelerator that the machine has.
        mesh = init_device_mesh(self.device.torch_device.type, self.degrees, mesh_dim_names=NAMES)
        if self.degrees.tensor > 1:
            for name in ("image", "text"):
                split_tower(getattr(model, name), mesh["tensor"], name)
            self.group = mesh["replicate", "shard"]._flatten("data").get_group()
        if self.stage == "none":
            return objective
        if self.degrees.tensor > 1:
            logging.getLogger("torch.distributed.tensor._redistribute").addFilter(_not_of_gathers)
        shards = mesh["shard"] if self.degrees.replicas == 1 else mesh["replicate", "shard"]
        frees = self.stage == "stage3"
        for tower in (model.image, model.text):
            for block in tower.blocks():
                fully_shard(block, mesh=shards, reshard_after_forward=frees)
            tower.register_forward_hook(_without_views)
            fully_shard(tower, mesh=shards, reshard_after_forward=frees)
        objective.register_forward_hook(_without_views)
        # The root is never freed after forward: its backward pass comes at once.
        single = {item for item in objective.parameters() if item.numel() == 1}
        fully_shard(objective, mesh=shards, ignored_params=single, reshard_after_forward=False)
        return objective

    def _averaged(self) -> list[nn.Parameter]:
        """Parameters whose gradients this layout averages: the whole ones, and all where nothing is sharded."""
        return [item for _, item in self.trainable() if item.numel() == 1 or self.stage == "none"]

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """Every backward pass of a step but the last: with stage1 gradients stay whole on this process meanwhile."""
        if self.stage == "none":
            yield
            return
        wrapped: Any = self.wrapped
        wrapped.set_requires_gradient_sync(self.stage != "stage1")
        wrapped.set_is_last_backward(False)
        try:
            yield
        finally:
            wrapped.set_requires_gradient_sync(True)
            wrapped.set_is_last_backward(True)

    def complete_gradients(self) -> None:
        """Average gradients that nothing else does; and take the first process's batch-norm statistics, as replicas do."""
        super().complete_gradients()
        if self.degrees.data == 1:
            return
        gradients = [local(item.grad) for item in self._averaged() if item.grad is not None]
        if gradients:
            _replace(gradients, all_reduce_mean(_joined(gradients), self.group))
        statistics = self._statistics()
        if statistics:
            joined = _joined(statistics)
            broadcast([joined], self.group)
            _replace(statistics, joined)

    def _statistics(self) -> list[Tensor]:
        """Running means and variances of norms, which FSDP2 neither shards nor sends."""
        norms = [item for item in self.objective.modules() if isinstance(item, nn.modules.batchnorm._BatchNorm)]
        return [item for norm in norms for item in (norm.running_mean, norm.running_var) if item is not None]

    def _infer(self, *call: Any) -> Any:
        with torch.no_grad():
            return self.wrapped(*call)


def _not_of_gathers(record: logging.LogRecord) -> bool:
    """torch advises against gathering over two dimensions of a mesh; so a checkpoint gets whole tensors, exact in any order."""
    return "all_gather" not in record.getMessage()


def _without_views(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Outputs of which none is a view: FSDP2 hangs its hooks on them, which a change in place would lose silently on a view.

    Registered before its own hooks. Views are of pooled features, tokens and losses: small beside what a tower keeps of them.
    """
    return tree_map(lambda item: item.clone() if isinstance(item, Tensor) and item._is_view() else item, output)


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([item.detach().flatten() for item in tensors])


def _replace(tensors: list[Tensor], joined: Tensor) -> None:
    """Give each tensor its part of ``joined``, in their order."""
    with torch.no_grad():
        for item, values in zip(tensors, joined.split([item.numel() for item in tensors]), strict=True):
            item.copy_(values.view_as(item))
