"""What is planned: a model, so many devices of so much memory, a global batch; and what a plan cannot be, said in one line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from diptych.errors import ConfigError
from diptych.objectives import OBJECTIVES, ObjectiveOptions


@dataclass(frozen=True)
class Request:
    """``memory`` bytes of each of ``devices``, ``batch_size`` pairs of a whole step over all of them.

    ``sharding`` "auto", or one that is to be taken; ``shards``, ``tensor`` and ``micro_batch`` 0 leave the choice to the plan.
    ``caption_tokens`` ids of a caption, 0 the context; ``reserve`` share of the memory that is left free; ``on_cpu``: attention
    in the forms of a CPU; ``master_weights`` as ``diptych train`` has it.
    """

    model: str
    devices: int
    memory: int
    batch_size: int
    objective: ObjectiveOptions = field(default_factory=lambda: OBJECTIVES.get("clip").Config())
    precision: str = "bf16"
    optimizer: str = "adamw"
    grad_checkpointing: bool = False
    lock_image: bool = False
    lock_text: bool = False
    caption_tokens: int = 0
    sharding: str = "auto"
    shards: int = 0
    tensor: int = 0
    micro_batch: int = 0
    devices_per_node: int = 8
    reserve: float = 0.1
    on_cpu: bool = False
    master_weights: Literal["fp32", "none"] = "fp32"

    @property
    def usable(self) -> int:
        """Bytes of a device that the plan may fill."""
        return int(self.memory * (1 - self.reserve))

    @property
    def node(self) -> int:
        """Devices of one machine."""
        return min(self.devices, self.devices_per_node)


def check(request: Request) -> None:
    """Raise ConfigError for numbers that no layout can have."""
    if request.devices % request.node:
        raise ConfigError(
            f"--devices {request.devices} with --devices-per-node {request.devices_per_node}: machines of unequal size; expected "
            f"a multiple of {request.devices_per_node}."
        )
    if request.batch_size < request.devices and not request.tensor:
        raise ConfigError(
            f"--batch-size {request.batch_size} is the global batch here: fewer pairs than --devices {request.devices}; give at "
            "least one for each."
        )
    if not request.tensor:  # a batch that does not divide is no reason to split layers
        pairs_each(request, request.devices)


def pairs_each(request: Request, data: int) -> int:
    """Pairs of each of ``data`` processes that see different ones. Raises ConfigError, with the nearest batches that divide."""
    if request.batch_size % data:
        lower = request.batch_size // data * data
        near = " or ".join(str(size) for size in (lower, lower + data) if size)
        raise ConfigError(
            f"--batch-size {request.batch_size} is the global batch here, which {data} processes that see different pairs cannot "
            f"share evenly; give {near}."
        )
    return request.batch_size // data
