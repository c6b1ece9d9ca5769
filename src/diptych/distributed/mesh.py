"""The options of parallelism, and the degrees that they give: how many processes replicate, shard and split the work.

    processes = replicas x shards x tensor        in this order: processes of one tensor group are neighbors

Arithmetic only; ``sharded`` builds a mesh of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from diptych.config import Count, Range
from diptych.distributed.process_group import World
from diptych.errors import ConfigError


@dataclass(frozen=True)
class ParallelOptions:
    """How the work is laid out over accelerators and processes."""

    device: str = "auto"
    """Accelerator: auto, or the name of one (diptych selftest lists them); NAME:1 picks the second."""
    dist_backend: str = ""
    """Collective backend under torchrun; empty takes the device's own."""
    dist_timeout: Annotated[float, Range(1)] = 600.0
    """Seconds that a process waits for the others, at the start and in each exchange, before the run ends."""
    precision: str = "auto"
    """fp32, bf16 or fp16 (mixed, with fp32 weights; open_clip's amp names work), pure_bf16 (towers stored in bf16), auto."""
    master_weights: Literal["fp32", "none"] = "fp32"
    """With pure_bf16: the optimizer moves fp32 copies of the weights; none: the bf16 weights themselves, in half the memory."""
    matmul: Literal["auto", "exact", "fast", "default"] = "auto"
    """fp32 products: exact, fast (a CPU: another library, equal to rounding; a device with TF32: TF32), or what suits a CPU."""
    text_layout: Literal["auto", "groups", "varlen", "buckets"] = "auto"
    """Texts by groups of equal length (a CPU's), packed for one kernel, or padded to a few lengths; auto: the device's form."""
    text_buckets: str = "auto"
    """Lengths that texts are padded to, at most four, the last the context, e.g. 16,32,48,77; auto: chosen from the data."""
    sharding: Literal["none", "stage1", "stage2", "stage3"] = "none"
    """Split the state of training over processes (FSDP2): gradients and moments (stage1, stage2), parameters too (stage3)."""
    sharding_parallel_degree: Count = 0
    """Processes that share one copy of the state, a divisor of all; 0 takes all. Fewer make replicas of shards (HSDP)."""
    tensor_parallel_degree: Annotated[int, Range(1)] = 1
    """Processes that share the heads and MLP columns of each layer, and see the same pairs; 1 shares nothing."""
    sync_batchnorm: bool = False
    """Let batch normalization of an image tower (ResNets) see the images of all processes; micro-batches stay apart."""
    deterministic: bool = False
    """Use torch's deterministic algorithms on accelerators; CPU runs are deterministic without it."""


class Degrees(NamedTuple):
    """``replicas`` of the model's state, ``shards`` that each is divided into, ``tensor`` processes that share a layer."""

    replicas: int = 1
    shards: int = 1
    tensor: int = 1

    @property
    def data(self) -> int:
        """How many processes see different pairs."""
        return self.replicas * self.shards


def degrees_of(options: ParallelOptions, world: World) -> Degrees:
    """The degrees of a run. Raises ConfigError, with the arithmetic, where processes do not divide or an option has no effect."""
    tensor, shards = options.tensor_parallel_degree, options.sharding_parallel_degree
    if options.sharding == "none" and shards:
        raise ConfigError("--sharding-parallel-degree goes with --sharding stage1, stage2 or stage3; add it.")
    if world.size % tensor:
        raise ConfigError(
            f"--tensor-parallel-degree {tensor}: {world.size} processes are no whole number of groups of {tensor}; expected "
            f"a divisor of {world.size}."
        )
    data = world.size // tensor
    if options.sharding == "none":
        return Degrees(data, 1, tensor)
    if data == 1:
        split = f"{world.size} processes / {tensor} of a tensor group" if tensor > 1 else "no other process"
        raise ConfigError(
            f"--sharding {options.sharding} divides the model over processes that see different pairs, and there is one "
            f"({split}); start more with torchrun, or leave it out."
        )
    shards = shards or data
    if shards < 2 or data % shards:
        product = f" ({world.size} processes / {tensor} of a tensor group)" if tensor > 1 else ""
        raise ConfigError(
            f"--sharding-parallel-degree {shards}: {data} processes{product} are no whole number of groups of {shards}; expected "
            f"a divisor of {data} from 2 on."
        )
    return Degrees(data // shards, shards, tensor)


def data_world(options: ParallelOptions, world: World) -> World:
    """The process among those that see different pairs: its number and theirs. Tensor groups share pairs. Raises ConfigError."""
    degrees = degrees_of(options, world)
    return World(world.rank // degrees.tensor, degrees.data, world.local_rank)
