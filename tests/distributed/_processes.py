"""Run a function in several real processes that form a group over gloo, and collect what each returns.

Each is forked from a server that has imported PyTorch and Diptych and computed nothing, so that it starts fresh and at once.
Nothing of it outlives its caller: every wait has a time limit, and each process ends itself when its caller is gone, so
that a test run which is killed leaves no orphans. Not a launcher: that is torchrun.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from typing import Any, NamedTuple

import torch
from torch import multiprocessing

LIMIT = 300.0  # seconds for everything, on a machine that others use too
IMPORTED = [
    "torch",
    "torch.distributed.tensor",
    "torch.distributed.checkpoint",
    "diptych.train",
    "diptych.evaluate",
    __name__,
]
"""What the server imports once. Not what starts threads: a forked process has only the thread that forked it."""


class Membership(NamedTuple):
    """What a process needs to join: its rank, the number of ranks, the group's port, the environment and when to give up."""

    rank: int
    size: int
    port: int
    environment: dict[str, str]
    limit: float


def run_in_processes(size: int, function: Callable[..., Any], *arguments: Any, limit: float = LIMIT) -> list[Any]:
    """Call ``function(*arguments)`` in ``size`` processes of one group; results in rank order.

    What one of them raises is raised here, with its traceback, and the others are ended. TimeoutError after ``limit``
    seconds.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    results, leave = context.Queue(), context.Event()
    processes = [
        context.Process(
            target=_enter,
            args=(Membership(rank, size, port, dict(os.environ), limit), results, leave, function, arguments),
            daemon=True,
        )
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + limit
    collected: dict[int, Any] = {}
    try:
        while len(collected) < size:
            try:
                rank, failure, result = results.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                missing = sorted(set(range(size)) - set(collected))
                raise TimeoutError(f"processes {missing} of {size} gave no result in {limit:g} s") from None
            assert not failure, f"process {rank} of {size} failed:\n{failure}"
            collected[rank] = result
        leave.set()
        for process in processes:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [collected[rank] for rank in range(size)]


def end_with_caller(limit: float) -> None:
    """End this process when its caller (not the server that forked it) is gone, or after ``limit`` seconds."""

    def watch() -> None:
        caller = multiprocessing.parent_process()
        if caller is not None:
            caller.join(limit)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _enter(
    member: Membership, results: Queue[Any], leave: Event, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    end_with_caller(member.limit)
    os.environ.clear()  # the server's, as it was when the first test started it
    os.environ |= member.environment | {
        "RANK": str(member.rank),
        "LOCAL_RANK": str(member.rank),
        "WORLD_SIZE": str(member.size),
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(member.port)}
    torch.set_num_threads(1)
    try:
        from diptych.devices import get_device
        from diptych.distributed import process_group

        process_group.start(get_device("cpu"))
        results.put((member.rank, "", function(*arguments)))
    # Whatever it is, the caller raises it.
    except BaseException:
        results.put((member.rank, traceback.format_exc(), None))
        return
    leave.wait(member.limit)  # a process that leaves early would break the group under the others
    process_group.stop()
