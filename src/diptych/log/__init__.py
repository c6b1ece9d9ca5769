"""What a run reports: messages to the terminal, numbers to files.

Messages go to standard error, from rank 0 only; on a terminal a live line shows the work going on, elsewhere plain lines
appear from time to time. Numbers go to sinks (``sinks``): ``metrics.jsonl`` always, TensorBoard, wandb, trackio and swanlab when
asked. Nothing is measured here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from diptych.log.sinks import Sink, open_sinks, read_rows

if TYPE_CHECKING:  # a tenth of a second to import, and most uses print nothing
    from rich.console import Console

PLAIN_LINE_SECONDS = 10.0
_held: list[list[tuple[str, str | None]]] = []  # the innermost last


def console() -> Console:
    """The terminal for messages; silent on ranks other than 0."""
    from rich.console import Console

    return Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0", highlight=False, soft_wrap=True)


def info(message: str) -> None:
    """Print one line."""
    _print(message)


def warn(message: str) -> None:
    """Print one line that asks for attention."""
    _print(f"warning: {message}", "yellow")


@contextmanager
def held() -> Iterator[list[tuple[str, str | None]]]:
    """Hold messages back until the end, and print those that are still in the list: what is tried first may be dropped."""
    lines: list[tuple[str, str | None]] = []
    _held.append(lines)
    try:
        yield lines
    finally:
        _held.pop()
        for line in lines:
            _print(*line)


def _print(message: str, style: str | None = None) -> None:
    if _held:
        _held[-1].append((message, style))
    else:
        console().print(message, style=style, markup=False)


class Report(Protocol):
    """What ``progress`` yields: call it with how much is done, and a short text on how it goes."""

    def __call__(self, done: int, detail: str = "", total: int | None = None) -> None:
        """``done`` units of the total, which may have become known; ``detail`` stands at the end of the line."""


@contextmanager
def progress(title: str, total: int, start: int = 0) -> Iterator[Report]:
    """Show that long work goes on: a live bar on a terminal, else a plain line every ten seconds and at the end."""
    screen = console()
    if screen.quiet:
        yield lambda done, detail="", total=None: None
    elif screen.is_terminal:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
        )
        with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[detail]}"), console=screen) as live:
            task = live.add_task(title, total=total, completed=start, detail="")
            yield lambda done, detail="", total=None: live.update(task, completed=done, detail=detail, total=total)
    else:
        yield _plain_lines(title, total)


def _plain_lines(title: str, expected: int) -> Report:
    last = time.monotonic()

    def report(done: int, detail: str = "", total: int | None = None) -> None:
        nonlocal last, expected
        now, expected = time.monotonic(), total or expected
        if done >= expected or now - last >= PLAIN_LINE_SECONDS:
            last = now
            info(f"{title} {done}/{expected} {detail}".rstrip())

    return report


__all__ = ["Report", "Sink", "console", "info", "open_sinks", "progress", "read_rows", "warn"]
