"""A second layout, FSDP2, to prove the interface of ``Layout``: blocks, towers and the objective sharded over all processes.

Not the product's sharding (no mixed precision, no stages): what a subclass must override, and no more.
"""

import contextlib

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from diptych.distributed.layout import Layout


class ShardedLayout(Layout):
    """Every encode call is a collective, and gradients are sharded."""

    collective = True

    def wrap(self, objective):
        mesh = init_device_mesh("cpu", (self.world.size,))
        for tower in (objective.model.image, objective.model.text):
            for block in tower.blocks():
                fully_shard(block, mesh=mesh)
            fully_shard(tower, mesh=mesh)
        return fully_shard(objective, mesh=mesh)

    @contextlib.contextmanager
    def accumulating(self):
        self.wrapped.set_requires_gradient_sync(False)
        self.wrapped.set_is_last_backward(False)
        try:
            yield
        finally:
            self.wrapped.set_requires_gradient_sync(True)
            self.wrapped.set_is_last_backward(True)

    def _infer(self, *call):
        with torch.no_grad():
            return self.wrapped(*call)
