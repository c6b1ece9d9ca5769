"""What a run says: words to the terminal, numbers to files.

Words go to standard error, from rank 0 only; on a terminal a live line shows the work going on, elsewhere plain lines
appear from time to time. Numbers go to sinks: ``metrics.jsonl`` always, TensorBoard when asked. A null sink stands in
where nothing is wanted, so that no caller asks "is there a log?". This file measures nothing.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from diptych.errors import ConfigError, OutputError
from diptych.files import write_text
from diptych.registry import did_you_mean

PLAIN_LINE_SECONDS = 10.0


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def console() -> Console:
    """The terminal for words; silent on ranks other than 0."""
    return Console(stderr=True, quiet=_rank() != 0, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print one line."""
    console().print(message, markup=False)


def warn(message: str) -> None:
    """Print one line that asks for attention."""
    console().print(f"warning: {message}", style="yellow", markup=False)


class Report(Protocol):
    """What ``progress`` yields: tell how much is done, and a few words on how it goes."""

    def __call__(self, done: int, detail: str = "", total: int | None = None) -> None:
        """``done`` units of the total, which may have become known; ``detail`` stands at the end of the line."""


@contextmanager
def progress(title: str, total: int, start: int = 0) -> Iterator[Report]:
    """Show that long work goes on: a live bar on a terminal, else a plain line every ten seconds and at the end."""
    screen = console()
    if screen.quiet:
        yield lambda done, detail="", total=None: None
    elif screen.is_terminal:
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

    def tell(done: int, detail: str = "", total: int | None = None) -> None:
        nonlocal last, expected
        now, expected = time.monotonic(), total or expected
        if done >= expected or now - last >= PLAIN_LINE_SECONDS:
            last = now
            say(f"{title} {done}/{expected} {detail}".rstrip())

    return tell


class Sink(Protocol):
    """Where numbers go. ``values`` holds plain floats, ints and strings; ``phase`` is "train" or "eval"."""

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Keep one row."""

    def close(self) -> None:
        """Flush and let go."""


class JsonLines:
    """One JSON object per line in ``metrics.jsonl``: the log that the report is made from."""

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        if resume_step is not None and path.exists():
            self._forget_after(resume_step)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def _forget_after(self, step: int) -> None:
        """Drop rows past the checkpoint: the resumed run writes them again."""
        kept = [json.dumps(row) for row in read_rows(self.path) if row.get("step", 0) <= step]
        write_text(self.path, "".join(row + "\n" for row in kept), "metric log")

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one row; numbers that JSON cannot hold become null."""
        row = {"phase": phase, "step": step, **values}
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
        }
        try:
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"the metric log {self.path} could not be written: {error.strerror or error}.") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file back; a last line cut short by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if isinstance(row, dict)]


class TensorBoard:
    """Scalars for TensorBoard, under ``tensorboard/`` of the run's folder."""

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "--report-to tensorboard needs the package tensorboard: pip install tensorboard"
            ) from error
        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Write every number of the row as a scalar ``phase/name``; an evaluation's name joins its phase."""
        prefix = "/".join([phase, *([str(values["name"])] if "name" in values else [])])
        for key, value in values.items():
            if isinstance(value, int | float) and key != "time":
                self._writer.add_scalar(f"{prefix}/{key}", value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class NullSink:
    """Keeps nothing: for ranks other than 0."""

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Sinks:
    """Several sinks as one."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Write the row to each."""
        for sink in self._sinks:
            sink.write(phase, step, values)

    def close(self) -> None:
        """Close each."""
        for sink in self._sinks:
            sink.close()


REPORT_TO: dict[str, Callable[[Path, int | None], Sink]] = {"tensorboard": TensorBoard}


def open_sinks(folder: Path, report_to: str = "", resume_step: int | None = None) -> Sink:
    """Open the metric log of a run: ``metrics.jsonl`` plus what ``report_to`` names (comma-separated, or "all").

    ``resume_step`` is the step of the checkpoint that a resumed run starts from: later rows are dropped.
    """
    if _rank() != 0:
        return NullSink()
    names = list(REPORT_TO) if report_to == "all" else [name.strip() for name in report_to.split(",") if name.strip()]
    for name in names:
        if name not in REPORT_TO:
            raise ConfigError("--report-to: " + did_you_mean(name, REPORT_TO, "metric sink"))
    return Sinks(
        [JsonLines(folder / "metrics.jsonl", resume_step), *(REPORT_TO[name](folder, resume_step) for name in names)]
    )
