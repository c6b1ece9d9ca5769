"""Which layout a run gets: replicas, or shards and split layers. Chosen here once; nobody else asks.

Not a launcher, and no layout itself.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych import log
from diptych.devices import PRECISIONS, PURE, Device
from diptych.distributed.batch_norm import synchronize
from diptych.distributed.layout import Layout
from diptych.distributed.master_weights import StoredWeights
from diptych.distributed.mesh import ParallelOptions, degrees_of
from diptych.distributed.process_group import World
from diptych.errors import ConfigError


def parallelize(
    objective: Any, device: Device, world: World, options: ParallelOptions | None = None, precision: str = "fp32"
) -> Layout:
    """Lay the objective out for training on this device and these processes; ``precision`` says how towers' weights are stored.

    Raises ConfigError for degrees that do not divide processes, heads or columns, and for weights that cannot be stored so;
    DeviceError for a precision that the device does not compute in.
    """
    options = ParallelOptions() if options is None else options
    stored = stored_weights(objective, options, precision)
    if stored.dtype is not None:
        device.autocast(precision)  # an error now, not in the first step
        towers = (objective.model.image, objective.model.text)
        locked = sum(not item.requires_grad for tower in towers for item in tower.castable().values())
        if locked:
            log.info(f"--precision {precision}: {locked} locked parameters are rounded to bf16, and saved so")
    layout: Layout
    if options.sharding == "none" and options.tensor_parallel_degree == 1:
        degrees_of(options, world)
        layout = Layout(objective, device, world, stored)
    else:
        from diptych.distributed.sharded import ShardedLayout  # imports half a second of torch that nobody else needs

        layout = ShardedLayout(objective, device, world, options, stored)
    if options.sync_batchnorm and not synchronize(objective.model, layout.group):
        raise ConfigError(
            f"--sync-batchnorm: {objective.model.config.name} has no batch normalization, which ResNets have; leave it out."
        )
    return layout


def stored_weights(objective: Any, options: ParallelOptions, precision: str) -> StoredWeights:
    """How the towers' weights are stored. Raises ConfigError where they cannot be stored so."""
    if precision not in PURE:
        if options.master_weights != "fp32":
            raise ConfigError(
                f"--master-weights {options.master_weights} goes with --precision pure_bf16: in {precision} the weights are fp32 "
                "themselves; leave it out."
            )
        return StoredWeights()
    norms = (item for item in objective.model.modules() if isinstance(item, nn.modules.batchnorm._BatchNorm))
    if options.sharding != "none" and any(own.requires_grad for norm in norms for own in norm.parameters()):
        raise ConfigError(
            f"--precision {precision}: {objective.model.config.name} has batch normalization, which stays in fp32, and "
            "--sharding takes one type for a block; take --precision bf16, or leave --sharding out."
        )
    return StoredWeights(PRECISIONS[PURE[precision]], options.master_weights == "fp32")
