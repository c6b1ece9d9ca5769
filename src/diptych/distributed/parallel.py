"""Which layout a run gets: replicas, or shards and split layers. Chosen here once; nobody else asks.

Not a launcher, and no layout itself.
"""

from __future__ import annotations

from typing import Any

from diptych.devices import Device
from diptych.distributed.layout import Layout
from diptych.distributed.mesh import ParallelOptions
from diptych.distributed.process_group import World


def parallelize(objective: Any, device: Device, world: World, options: ParallelOptions | None = None) -> Layout:
    """Lay the objective out for training on this device and these processes.

    Raises ConfigError for degrees that do not divide processes, heads or columns.
    """
    if options is None or (options.sharding == "none" and options.tensor_parallel_degree == 1):
        return Layout(objective, device, world)
    from diptych.distributed.sharded import ShardedLayout  # imports half a second of torch that nobody else needs

    return ShardedLayout(objective, device, world, options)
