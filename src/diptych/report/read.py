"""Reading a run's folder for the report: every file may be absent, truncated or older than this program.

What cannot be read is left out, with a note that the page shows. Nothing is computed here but the few facts of the
header (pairs seen, duration).
"""

from __future__ import annotations

import base64
import json
import statistics
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from diptych.files import StrPath
from diptych.log import read_rows

Row = Mapping[str, Any]
PAUSE_SECONDS = 1800.0  # a longer silence between two rows, if also unusual for the run, was a stop and not work


@dataclass(frozen=True)
class RunFiles:
    """What a run's folder holds: ``config`` parsed, ``config_text`` as written, the rows of the log, results, gallery;
    ``views`` the sheet of views as an embedded image.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    train: tuple[Row, ...] = ()
    evaluations: tuple[Row, ...] = ()
    results: tuple[Row, ...] = ()
    gallery: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    views: str = ""

    def option(self, name: str, default: Any = None) -> Any:
        """The value of an option, in whichever table of the config it stands."""
        tables = [self.config, *(table for table in self.config.values() if isinstance(table, Mapping))]
        return next(
            (table[name] for table in tables if name in table and not isinstance(table[name], Mapping)), default
        )

    @property
    def batch(self) -> int | None:
        """Pairs that one step's loss sees on one process, or None where the config does not say."""
        size, micro = self.option("batch_size"), self.option("accum_freq", 1)
        return size * micro if isinstance(size, int) and isinstance(micro, int) and size * micro > 0 else None

    @property
    def steps(self) -> int:
        """The last step that the log knows."""
        return max((int(row["step"]) for row in self.train), default=0)

    @property
    def pairs(self) -> int | None:
        """Pairs seen: as logged (``pairs``), else steps times batch."""
        logged = [int(row["pairs"]) for row in self.train if number(row.get("pairs")) is not None]
        if logged:
            return max(logged)
        return self.steps * self.batch if self.batch and self.steps else None

    @property
    def seconds(self) -> float | None:
        """Seconds from the first row of the log to the last, long pauses between sittings left out."""
        times = [number(row.get("time")) for row in (*self.train, *self.evaluations)]
        ordered = sorted(time for time in times if time is not None)
        gaps = [later - sooner for sooner, later in pairwise(ordered)]
        if not gaps:
            return None
        pause = max(PAUSE_SECONDS, 50 * statistics.median(gaps))
        return sum(gap for gap in gaps if gap <= pause)


def read_run(folder: StrPath) -> RunFiles:
    """Read all that there is."""
    folder = Path(folder)
    notes: list[str] = []
    text = _text(folder / "config.toml", notes)
    try:
        config = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        notes.append(f"config.toml is not valid TOML ({error}); it is shown as it is.")
        config = {}
    rows = _rows(folder / "metrics.jsonl", notes)
    train = tuple(row for row in rows if row.get("phase") == "train")
    lost = [row for row in train if "loss" in row and number(row["loss"]) is None]
    if lost:
        rows_lost = "1 row" if len(lost) == 1 else f"{len(lost)} rows"
        notes.append(f"The loss was not a number in {rows_lost} of the log, first at step {lost[0]['step']}.")
    return RunFiles(
        name=folder.resolve().name,
        config=config,
        config_text=text,
        train=train,
        evaluations=tuple(row for row in rows if row.get("phase") == "eval"),
        results=_listed(folder / "results.json", notes),
        gallery=_listed(folder / "gallery.json", notes),
        notes=tuple(notes),
        views=_embedded(folder / "views.png"),
    )


def number(value: Any) -> float | None:
    """The value as a float, or None where it is no number, not finite or beyond 1e30; below 1e-30 it is 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e30:
        return None
    return float(value) if abs(value) >= 1e-30 else 0.0


def points(rows: tuple[Row, ...], key: str) -> list[tuple[float, float]]:
    """The (step, value) pairs of one quantity, where it is a finite number, by step; of equal steps the last counts."""
    values = {int(row["step"]): number(row.get(key)) for row in rows}
    return [(float(step), value) for step, value in sorted(values.items()) if value is not None]


def _rows(path: Path, notes: list[str]) -> tuple[Row, ...]:
    if not path.is_file():
        return ()
    try:
        rows = read_rows(path)
    except OSError as error:
        notes.append(f"{path.name} could not be read: {error.strerror or error}.")
        return ()
    return tuple(row for row in rows if number(row.get("step")) is not None)


def _listed(path: Path, notes: list[str]) -> tuple[Row, ...]:
    text = _text(path, notes)
    if not text.strip():
        return ()
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError:
        notes.append(f"{path.name} is incomplete and was left out.")
        return ()
    return tuple(_mappings(parsed))


def _mappings(parsed: Any) -> Iterator[Row]:
    for item in parsed if isinstance(parsed, list) else [parsed]:
        if isinstance(item, Mapping):
            yield item


def _embedded(path: Path) -> str:
    """A PNG as an address that holds all of it; empty where there is none."""
    try:
        data = path.read_bytes()
    except OSError:
        return ""
    return "data:image/png;base64," + base64.b64encode(data).decode() if data.startswith(b"\x89PNG") else ""


def _text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        notes.append(f"{path.name} could not be read: {error.strerror or error}.")
        return ""
