"""Where the numbers of a run go: a file of its own always, and what other people's dashboards read when asked.

A sink takes rows of plain numbers; ``metrics.jsonl`` is the one that the report is made from. Adapters hand the same numbers,
under the same names, to TensorBoard, wandb, trackio and swanlab, whose own environment variables (WANDB_MODE, TRACKIO_DIR,
SWANLAB_MODE, ...) hold. A null sink stands in where nothing is wanted, so that no caller asks "is there a log?".
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from diptych.errors import ConfigError, OutputError
from diptych.files import write_text
from diptych.registry import did_you_mean

PROJECT = "diptych"


class Sink(Protocol):
    """Where numbers go. ``values`` holds plain floats, ints and strings; ``phase`` is "train" or "eval"."""

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Store one row."""

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
        lines = [json.dumps(row) for row in read_rows(self.path) if row.get("step", 0) <= step]
        write_text(self.path, "".join(line + "\n" for line in lines), "metric log")

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
    """Read a metrics file back; a last line truncated by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def scalars(phase: str, values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row as ``phase/name``; an evaluation's own name joins its phase. The clock time is left out."""
    prefix = "/".join([phase, *([str(values["name"])] if "name" in values else [])])
    return {
        f"{prefix}/{key}": value
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key != "time"
    }


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"--report-to {name} needs the package {name}: pip install {name}") from error


def _config(folder: Path) -> dict[str, Any]:
    """The run's resolved options, flat, as dashboards filter by them; nothing where they cannot be read."""
    try:
        tables = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    flat = {key: value for key, value in tables.items() if not isinstance(value, dict)}
    for table in tables.values():
        flat |= table if isinstance(table, dict) else {}
    return flat


def _project(folder: Path) -> str:
    """The dashboards' project that the run names, or our own."""
    return str(_config(folder).get("wandb_project_name") or PROJECT)


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
        """Write every number of the row as a scalar."""
        for name, value in scalars(phase, values).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class Wandb:
    """Weights & Biases, files under the run's folder; a resumed run goes on under the same id."""

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        identity = hashlib.blake2b(str(folder.resolve()).encode(), digest_size=8).hexdigest()
        self._run = _library("wandb").init(
            project=_project(folder), name=folder.resolve().name, dir=str(folder), config=_config(folder),
            id=identity, resume=None if resume_step is None else "allow", notes=_config(folder).get("wandb_notes") or None,
        )  # fmt: skip

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Log the numbers of the row at its step."""
        self._run.log(scalars(phase, values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackio:
    """Trackio, in its own folder of projects (TRACKIO_DIR), where ``trackio show`` finds it."""

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        resume = "never" if resume_step is None else "allow"
        name = folder.resolve().name
        self._run = _library("trackio").init(project=_project(folder), name=name, config=_config(folder), resume=resume)

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Log the numbers of the row at its step."""
        self._run.log(scalars(phase, values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Swanlab:
    """SwanLab, files under ``swanlab/`` of the run's folder."""

    def __init__(self, folder: Path, resume_step: int | None = None) -> None:
        self._library = _library("swanlab")
        subfolder = folder / "swanlab"
        subfolder.mkdir(parents=True, exist_ok=True)
        self._library.init(
            project=_project(folder),
            experiment_name=folder.resolve().name,
            logdir=str(subfolder),
            config=_config(folder),
        )

    def write(self, phase: str, step: int, values: Mapping[str, Any]) -> None:
        """Log the numbers of the row at its step."""
        self._library.log(scalars(phase, values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._library.finish()


class NullSink:
    """Stores nothing: for ranks other than 0."""

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


REPORT_TO: dict[str, Callable[[Path, int | None], Sink]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "swanlab": Swanlab,
}


def open_sinks(folder: Path, report_to: str = "", resume_step: int | None = None) -> Sink:
    """Open the metric log of a run: ``metrics.jsonl`` plus what ``report_to`` names (comma-separated, or "all").

    ``resume_step`` is the step of the checkpoint that a resumed run starts from: later rows are dropped.
    """
    if os.environ.get("RANK", "0") != "0":
        return NullSink()
    names = list(REPORT_TO) if report_to == "all" else [name.strip() for name in report_to.split(",") if name.strip()]
    for name in names:
        if name not in REPORT_TO:
            raise ConfigError("--report-to: " + did_you_mean(name, REPORT_TO, "metric sink"))
    with contextlib.ExitStack() as opened:  # a dashboard that cannot be opened leaves no file open behind it
        sinks: list[Sink] = [JsonLines(folder / "metrics.jsonl", resume_step)]
        opened.callback(sinks[0].close)
        for name in names:
            sinks.append(REPORT_TO[name](folder, resume_step))
            opened.callback(sinks[-1].close)
        opened.pop_all()
    return Sinks(sinks)
