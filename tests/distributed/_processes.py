"""Run a function in several real processes that form a group over gloo, and collect what each returns.

Nothing of it outlives its caller: every wait has a time limit, and each process ends itself when its parent is gone, so
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


class Membership(NamedTuple):
    """What a process needs to join: its rank, the number of ranks, the group's port, its parent and when to give up."""

    rank: int
    size: int
    port: int
    parent: int
    limit: float


def run_in_processes(size: int, function: Callable[..., Any], *arguments: Any, limit: float = LIMIT) -> list[Any]:
    """Call ``function(*arguments)`` in ``size`` processes of one group; results in rank order.

    What one of them raises is raised here, with its traceback, and the others are ended. TimeoutError after ``limit``
    seconds.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results, leave = context.Queue(), context.Event()
    processes = [
        context.Process(
            target=_enter,
            args=(Membership(rank, size, port, os.getpid(), limit), results, leave, function, arguments),
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


def end_with_parent(parent: int, limit: float) -> None:
    """End this process when ``parent`` is no longer its parent, or after ``limit`` seconds; polled from a thread."""
    deadline = time.monotonic() + limit

    def watch() -> None:
        while os.getppid() == parent and time.monotonic() < deadline:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _enter(
    member: Membership, results: Queue[Any], leave: Event, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    end_with_parent(member.parent, member.limit)
    os.environ |= {"RANK": str(member.rank), "LOCAL_RANK": str(member.rank), "WORLD_SIZE": str(member.size)}
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
