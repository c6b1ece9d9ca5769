"""Run a function in several real processes that form a group over gloo, and collect what each returns."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
from torch import multiprocessing


def run_in_processes(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call ``function(*arguments)`` in ``size`` processes of one group; results in rank order."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = multiprocessing.spawn(_enter, (size, port, results, function, arguments), nprocs=size, join=False)
    collected = dict(results.get() for _ in range(size))
    while not processes.join():
        pass
    return [collected[rank] for rank in range(size)]


def _enter(
    rank: int, size: int, port: int, results: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    from diptych.devices import get_device
    from diptych.distributed import world

    world.start(get_device("cpu"))
    try:
        results.put((rank, function(*arguments)))
    finally:
        world.stop()
