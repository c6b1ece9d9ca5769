"""What is planned: a model, so many devices of so much memory, a global batch; and what a plan cannot be, said in one line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from diptych.errors import ConfigError
from diptych.objectives import ObjectiveOptions

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


@dataclass(frozen=True)
class Request:
    """``memory`` bytes of each of ``devices``, ``batch_size`` pairs of a whole step over all of them.

    ``sharding`` "auto", or one that is to be taken; ``shards``, ``tensor`` and ``micro_batch`` 0 leave the choice to the plan.
    ``caption_tokens`` ids of a caption, 0 the context; ``reserve`` share of the memory that is left free; ``on_cpu``: attention
    in the forms of a CPU.
    """

    model: str
    devices: int
    memory: int
    batch_size: int
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)
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

    @property
    def usable(self) -> int:
        """Bytes of a device that the plan may fill."""
        return int(self.memory * (1 - self.reserve))

    @property
    def node(self) -> int:
        """Devices of one machine."""
        return min(self.devices, self.devices_per_node)


def parse_memory(text: str, flag: str = "--memory") -> int:
    """``80GB`` (10^9 bytes each), ``80GiB`` (2^30) or a number of bytes. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None or not float(match.group(1)):
        raise ConfigError(f"{flag} {text!r}: expected a number with a unit, such as 80GB or 80GiB.")
    return int(float(match.group(1)) * unit)


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


def human(size: float) -> str:
    """Bytes as people write them, in powers of ten: 6.85 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"
