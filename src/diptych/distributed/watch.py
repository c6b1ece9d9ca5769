"""Watching over the processes of a run: one that stopped, or is stuck, is named in one line, and the run ends.

Every process says from a thread that it lives, and in which phase it is; the first watches all, the second watches the first.
A process that has not been heard of for the time limit is named with its last phase; so is one that lives, but has been in
one phase for so long while others wait in a later one. Then each process writes the stacks of its threads into a file, and
ends; torchrun starts them again where it may. Without several processes nothing is watched. Not a limit on how long work may
take: processes that are all in the same phase are working.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from diptych.distributed.process_group import World, own_store

INTERVAL = 1.0  # seconds between signs of life, less where the limit is short
STOP = "stop"


@dataclass
class Seen:
    """What was last heard of a process: its ``beat`` and ``phase``, how many phases it has begun, and since when they stand."""

    beat: int = -1
    phases: int = -1
    phase: str = "starting"
    beat_since: float = 0.0
    phase_since: float = 0.0


def verdict(others: dict[int, Seen], now: float, limit: float) -> str:
    """What to say of processes by rank, of which all are heard by ``now``; "" where nothing is wrong."""
    for rank, seen in others.items():
        if now - seen.beat_since > limit:
            return f"rank {rank} has not answered for {limit:g} s; it was in: {seen.phase}"
    latest = max(seen.phases for seen in others.values())
    for rank, seen in others.items():
        lives = now - seen.beat_since < limit / 2  # one that does not is named for that, a little later
        if lives and seen.phases < latest and now - seen.phase_since > limit:
            return f"rank {rank} has been in one phase for {limit:g} s, and others wait for it: {seen.phase}"
    return ""


class Watch:
    """The watch of one process of ``world``; ``stacks`` is the folder for stacks, once there is one."""

    def __init__(self, world: World, limit: float, store: dist.Store) -> None:
        self.world, self.limit, self.store = world, limit, store
        self.stacks: Path | None = None
        self._phase, self._phases, self._beat = "starting", 0, 0
        self._others = {
            rank: Seen(beat_since=time.monotonic(), phase_since=time.monotonic()) for rank in self._watched()
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def _watched(self) -> list[int]:
        """The ranks that this process watches: itself and all others the first, the first alone the second."""
        return list(range(self.world.size)) if self.world.main else [0] if self.world.rank == 1 else []

    def enter(self, phase: str) -> None:
        """This process begins a phase. Every process begins the same ones, in the same order."""
        self._phase, self._phases = phase, self._phases + 1

    def close(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        interval = min(INTERVAL, self.limit / 10)
        while not self._ended.wait(interval):
            try:
                self._say()
                stop = self.store.get(STOP).decode() if self.store.check([STOP]) else ""
                said = stop or self._verdict()
            except (RuntimeError, dist.DistError):  # the store is gone: the run is ending
                return
            if said:
                self._end(said, mine=not stop, wait=3 * interval)

    def _say(self) -> None:
        self._beat += 1
        self.store.set(str(self.world.rank), json.dumps([self._beat, self._phases, self._phase]))

    def _verdict(self) -> str:
        now = time.monotonic()
        for rank, seen in self._others.items():
            if not self.store.check([str(rank)]):
                continue
            beat, phases, phase = json.loads(self.store.get(str(rank)))
            if beat != seen.beat:
                seen.beat, seen.beat_since = beat, now
            if phases != seen.phases:
                seen.phases, seen.phase, seen.phase_since = phases, phase, now
        return verdict(self._others, now, self.limit) if self._others else ""

    def _end(self, said: str, mine: bool, wait: float) -> None:
        """Say it to all, write the stacks, and end this process: no other thread of it may answer any more."""
        if mine:
            self.store.set(STOP, said)
            sys.stderr.write(f"diptych: {said}. The run ends; continue it with --resume auto.\n")
            sys.stderr.flush()
        if self.stacks is not None:
            with contextlib.suppress(OSError):
                path = self.stacks / f"stacks.rank{self.world.rank}.txt"
                with path.open("w", encoding="utf-8") as file:
                    file.write(f"{said}; the threads of rank {self.world.rank}, which is in: {self._phase}\n\n")
                    file.flush()
                    faulthandler.dump_traceback(file)
        if mine:
            time.sleep(wait)  # so that the others hear of it before torchrun ends them
        os._exit(1)


_current: list[Watch] = []


@contextlib.contextmanager
def watching(world: World, limit: float) -> Iterator[None]:
    """Watch over the processes of a group while the context lasts; ``limit`` in seconds."""
    if world.size == 1:
        yield
        return
    store = dist.PrefixStore("diptych_watch", own_store(timedelta(seconds=limit)))
    watch = Watch(world, limit, store)
    _current.append(watch)
    try:
        yield
    finally:
        _current.remove(watch)
        watch.close()


def phase(name: str) -> None:
    """This process begins a phase of the run, such as "loading data"; nothing where nobody watches."""
    if _current:
        _current[-1].enter(name)


def stacks_into(folder: Path) -> None:
    """Where stacks are written when the run must end."""
    if _current:
        _current[-1].stacks = folder
