"""Who this process is among the others, read from the environment that torchrun sets.

``start`` joins the group and ``stop`` leaves it. Not a launcher: ``torchrun --nproc_per_node 8 -m diptych train ...``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from diptych.devices import Device
from diptych.errors import DistributedError


@dataclass(frozen=True)
class World:
    """``rank`` of ``size`` processes; ``local_rank`` counts within this machine and picks the accelerator."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """True on the one process that writes files and speaks."""
        return self.rank == 0


def world_from_environment() -> World:
    """Read RANK, WORLD_SIZE and LOCAL_RANK; without them, a world of one. Raises DistributedError for a half-set group."""
    if "WORLD_SIZE" not in os.environ:
        return World()
    try:
        world = World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    except (KeyError, ValueError) as error:
        raise DistributedError(
            f"WORLD_SIZE is set but {error} is not a number that torchrun would set; start with torchrun."
        ) from error
    if not 0 <= world.rank < world.size:
        raise DistributedError(f"RANK={world.rank} is outside of WORLD_SIZE={world.size}; start with torchrun.")
    return world


def start(device: Device, backend: str = "") -> World:
    """Join the process group; ``backend`` overrides the device's own (nccl, gloo, ...). Raises DistributedError."""
    world = world_from_environment()
    if world.size > 1 and not dist.is_initialized():
        try:
            dist.init_process_group(backend or device.backend, rank=world.rank, world_size=world.size)
        except (RuntimeError, ValueError) as error:
            raise DistributedError(
                f"the collective backend {backend or device.backend!r} could not start: {error}"
            ) from error
    return world


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def size() -> int:
    """The number of processes in the group; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the group; 0 without a group."""
    return dist.get_rank() if size() > 1 else 0


def barrier() -> None:
    """Wait for all processes."""
    if size() > 1:
        dist.barrier()


def broadcast_object(value: Any) -> Any:
    """Give every process rank 0's small Python value (a flag, a path)."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def first_not_none(value: Any) -> Any:
    """The first small Python value that is not None, by rank, for every process; None when all bring None."""
    if size() == 1:
        return value
    brought: list[Any] = [None] * size()
    dist.all_gather_object(brought, value)
    return next((one for one in brought if one is not None), None)


def any_rank(flag: bool, device: torch.device) -> bool:
    """True everywhere when the flag is up anywhere: how ranks agree to stop at the same step."""
    if size() == 1:
        return flag
    raised = torch.tensor([int(flag)], device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised.item())


def all_reduce_mean(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over processes, without gradient; the tensor itself at world size 1."""
    if size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / size()
