"""Which layout a run gets: replicas, or shards and split layers. Chosen here once; nobody else asks.

Not a launcher, and no layout itself.
"""

from __future__ import annotations

from typing import Any

from diptych.devices import Device
from diptych.distributed.batch_norm import synchronize
from diptych.distributed.layout import Layout
from diptych.distributed.mesh import ParallelOptions, degrees_of
from diptych.distributed.process_group import World
from diptych.errors import ConfigError


def parallelize(objective: Any, device: Device, world: World, options: ParallelOptions | None = None) -> Layout:
    """Lay the objective out for training on this device and these processes.

    Raises ConfigError for degrees that do not divide processes, heads or columns.
    """
    if options is None:
        return Layout(objective, device, world)
    layout: Layout
    if options.sharding == "none" and options.tensor_parallel_degree == 1:
        degrees_of(options, world)
        layout = Layout(objective, device, world)
    else:
        from diptych.distributed.sharded import ShardedLayout  # imports half a second of torch that nobody else needs

        layout = ShardedLayout(objective, device, world, options)
    if options.sync_batchnorm and not synchronize(objective.model, layout.group):
        raise ConfigError(
            f"--sync-batchnorm: {objective.model.config.name} has no batch normalization, which ResNets have; leave it out."
        )
    return layout
