"""The process group: rank and world size from torchrun's environment, and the small collectives that programs need.

``start`` joins the group and ``stop`` leaves it. Every collective takes a ``group`` (None: all processes). Not a launcher:
``torchrun --nproc_per_node 8 -m diptych train ...``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from diptych.devices import Device
from diptych.errors import DistributedError, PeerLostError
from diptych.registry import did_you_mean

SAID = "said"  # a key of torchrun's store: how many lines processes of this attempt have said
TIMEOUT = 600.0  # seconds; torch's own is half an hour with gloo
Value = TypeVar("Value")
Group: TypeAlias = dist.ProcessGroup | None
_OF_THE_HOST: list[dist.ProcessGroup] = []  # beside a device's group: flags of the host do not wait for the device


@dataclass(frozen=True)
class World:
    """``rank`` of ``size`` processes; ``local_rank`` counts within this machine and picks the accelerator."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def main(self) -> bool:
        """True on the one process that writes files and prints."""
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


def start(device: Device, backend: str = "", timeout: float = TIMEOUT) -> World:
    """Join the process group; ``backend`` overrides the device's own (nccl, gloo, ...).

    ``timeout``: seconds that a process waits for the others, here and in each collective. Raises DistributedError.
    """
    world = world_from_environment()
    _check_backend(backend)
    if world.size > 1 and not dist.is_initialized():
        limit = timedelta(seconds=timeout)
        store = own_store(limit) if _shares_store() else None
        try:
            dist.init_process_group(
                backend or device.backend,
                rank=world.rank,
                world_size=world.size,
                timeout=limit,
                store=store,
            )
        except (RuntimeError, ValueError) as error:
            raise DistributedError(
                f"the collective backend {backend or device.backend!r} could not start: {error}"
            ) from error
        if device.asynchronous:
            _OF_THE_HOST[:] = [dist.new_group(backend="gloo", timeout=limit)]
    return world


def _shares_store() -> bool:
    """Whether torchrun's agent shares its store; else the first process makes one when the group starts."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def own_store(limit: timedelta) -> dist.Store:
    """A client of its own of the group's store, with a prefix for this attempt.

    A restarted attempt would else read the addresses of the processes before it, and wait for them: torchrun keeps its store.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, is_master=False, timeout=limit)
    return dist.PrefixStore(f"diptych_attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def first_to_say(line: str) -> bool:
    """Whether no other process of this attempt has said the same line yet; True where torchrun's store cannot be asked."""
    store = _store_of_sayings()
    if store is None:
        return True
    digest = hashlib.sha256(line.encode("utf-8", "surrogateescape")).hexdigest()
    try:
        store.add(SAID, 1)
        return store.add(f"{SAID} {digest}", 1) == 1
    except (RuntimeError, KeyError, ValueError):
        return True


def nobody_spoke(seconds: float = 2.0) -> bool:
    """Whether no process of this attempt says anything within ``seconds``; True where torchrun's store cannot be asked."""
    store, deadline = _store_of_sayings(), time.monotonic() + seconds
    try:
        while store is not None and time.monotonic() < deadline:
            if store.add(SAID, 0):
                return False
            time.sleep(0.1)
    except (RuntimeError, KeyError, ValueError):
        return True
    return True


def _store_of_sayings() -> dist.Store | None:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not _shares_store():
        return None
    try:
        return own_store(timedelta(seconds=5))
    except (RuntimeError, KeyError, ValueError):
        return None


@contextlib.contextmanager
def naming_lost_peers() -> Iterator[None]:
    """Turn the failure of an exchange in which another process is gone into a PeerLostError of one line."""
    try:
        yield
    except RuntimeError as error:
        if size() == 1 or not (isinstance(error, dist.DistError) or "/gloo/" in str(error)):
            raise
        reason = " ".join(str(error).rpartition("] ")[2].split())
        raise PeerLostError(
            f"an exchange with the other processes failed ({reason.partition('. ')[0][:120]}): one of them has ended; continue "
            "with --resume auto."
        ) from error


def _check_backend(backend: str) -> None:
    """Raise DistributedError for a backend that torch does not know or was built without, in a process on its own too.

    ``backend`` may name several by device, as in DEVICE:BACKEND,DEVICE:BACKEND.
    """
    known = [name for name in dist.Backend.backend_list if name != dist.Backend.UNDEFINED]
    for part in filter(None, backend.lower().split(",")):
        name = part.rpartition(":")[2]
        if name not in known:
            raise DistributedError("--dist-backend: " + did_you_mean(name, known, "collective backend"))
        if not dist.is_backend_available(name):
            usable = ", ".join(item for item in known if dist.is_backend_available(item))
            raise DistributedError(f"--dist-backend {backend}: this torch was built without {name}; it has {usable}.")


def stop() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        _OF_THE_HOST.clear()


def size(group: Group = None) -> int:
    """The number of processes in the group; 1 without a group."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank(group: Group = None) -> int:
    """This process's number in the group; 0 without a group."""
    return dist.get_rank(group) if size(group) > 1 else 0


def barrier(group: Group = None) -> None:
    """Wait for all processes."""
    if size(group) > 1:
        dist.barrier(group)


def broadcast_object(value: Value, group: Group = None) -> Value:
    """Give every process the first rank's small Python value (a flag, a path)."""
    if size(group) == 1:
        return value
    values = [value]
    source = 0 if group is None else dist.get_global_rank(group, 0)
    dist.broadcast_object_list(values, src=source, group=group)
    return values[0]


def broadcast(tensors: Iterable[Tensor], group: Group = None) -> None:
    """Give every process the first rank's values of some tensors, in place."""
    if size(group) == 1:
        return
    source = 0 if group is None else dist.get_global_rank(group, 0)
    for tensor in tensors:
        dist.broadcast(tensor, src=source, group=group)


def all_gather_object(value: Value, group: Group = None) -> list[Value]:
    """The small Python value of every process, by rank, for every process."""
    values = [value] * size(group)
    if len(values) > 1:
        dist.all_gather_object(values, value, group=group)
    return values


def first_not_none(value: Value | None, group: Group = None) -> Value | None:
    """The first small Python value that is not None, by rank, for every process; None when all give None."""
    return next((item for item in all_gather_object(value, group) if item is not None), None)


def any_rank(flag: bool, device: torch.device, group: Group = None) -> bool:
    """True everywhere when the flag is True anywhere: how ranks agree to stop at the same step."""
    return any_ranks([flag], device, group)[0]


def any_ranks(flags: Sequence[bool], device: torch.device, group: Group = None) -> list[bool]:
    """Each flag as ``any_rank`` gives it, all in one collective."""
    if size(group) == 1:
        return list(flags)
    raised = torch.tensor([int(flag) for flag in flags])
    if group is None and _OF_THE_HOST:
        group = _OF_THE_HOST[0]
    else:
        raised = raised.to(device, non_blocking=True)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=group)
    return [bool(flag) for flag in raised.tolist()]


def every_rank(flag: Tensor) -> Tensor:
    """A bool scalar on the device: True everywhere when the flag, such a scalar, is True on every process. Nothing is read."""
    if size() == 1:
        return flag
    lowest = flag.to(torch.int32)
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    return lowest > 0


def all_reduce_mean(value: Tensor, group: Group = None) -> Tensor:
    """The mean of a tensor over processes, without gradient; the tensor itself at world size 1."""
    if size(group) == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total, group=group)
    return total / size(group)


def all_reduce_mean_of(values: Mapping[str, Tensor], group: Group = None) -> dict[str, float]:
    """The means over processes of several scalars, in one collective; every process must give the same names."""
    if not values:
        return {}
    stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
    return dict(zip(values, all_reduce_mean(stacked, group).tolist(), strict=True))
