"""Run a function in several real processes that form a group over gloo, and collect what each returns."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import multiprocessing


def run_in_processes(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call ``function(*arguments)`` in ``size`` processes of one group; results in rank order.

    What one of them raises is raised here, with its traceback, and the others are ended.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results, leave = context.Queue(), context.Event()
    started = [
        context.Process(target=_enter, args=(rank, size, port, results, leave, function, arguments), daemon=True)
        for rank in range(size)
    ]
    for process in started:
        process.start()
    collected: dict[int, Any] = {}
    try:
        while len(collected) < size:
            rank, failed, found = results.get(timeout=300)
            assert not failed, f"process {rank} of {size} failed:\n{failed}"
            collected[rank] = found
        leave.set()
        for process in started:
            process.join()
    finally:
        for process in started:
            process.kill()
    return [collected[rank] for rank in range(size)]


def _enter(
    rank: int, size: int, port: int, results: Any, leave: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        from diptych.devices import get_device
        from diptych.distributed import process_group

        process_group.start(get_device("cpu"))
        results.put((rank, "", function(*arguments)))
    # Whatever it is, it is told to the one who waits for a result.
    except BaseException:
        results.put((rank, traceback.format_exc(), None))
        return
    leave.wait()  # nobody hangs up while another still talks
    process_group.stop()
