"""``diptych profile``: parameters and operations of architectures, in open_clip's columns; with --measure also their speed.

Arguments, tables and files only; the counting is ``diptych.profile``'s.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from diptych.commands import command

if TYPE_CHECKING:
    from diptych.profile import Counts, Measured


@dataclass(frozen=True)
class Options:
    """Which architectures, and where the table goes."""

    model: str
    """Architecture, several joined by commas, or all."""
    results_file: str = ""
    """CSV to write."""
    measure: bool = False
    """Also run each: latency, items per second, memory, share of this device's matrix speed."""
    batch_size: int = 8
    """measure: images and texts at a time."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """measure: arithmetic inside the towers."""
    caption_tokens: int = 16
    """measure: tokens of a caption, begin and end token included."""
    device: str = "auto"
    """measure: accelerator."""
    matmul: Literal["auto", "exact", "fast"] = "auto"
    """measure: fp32 products: exact (MKL), fast (oneDNN, equal to rounding; a device with TF32: TF32), or what suits this CPU."""
    json: bool = False
    """One JSON list instead of a table."""


@command("profile", example="diptych profile --model ViT-L-14 --results-file profile.csv")
def main(options: Options) -> int:
    """Count parameters (millions) and floating-point operations (billions, one image, one full text) of architectures."""
    from diptych.models import list_models

    names = list_models() if options.model == "all" else [name.strip() for name in options.model.split(",")]
    rows = _counted(names)
    if options.results_file:
        _write(rows, options.results_file)
    measured = {row.model: _measured(row, options) for row in rows} if options.measure else {}
    if options.json:
        tables = {name: [dataclasses.asdict(part) for part in parts] for name, parts in measured.items()}
        print(json.dumps([{**dataclasses.asdict(row), "measured": tables.get(row.model, [])} for row in rows]))
    else:
        _print(rows, measured)
    return 0


def _counted(names: list[str]) -> list[Counts]:
    """A row per architecture, the cheapest first."""
    from diptych import log
    from diptych.profile import count

    rows = []
    with log.progress("counting", len(names)) as report:
        for done, name in enumerate(names, start=1):
            rows.append(count(name))
            report(done)
    return sorted(rows, key=lambda row: (row.gflops, row.mparams, row.model))


def _write(rows: list[Counts], path: str) -> None:
    from pathlib import Path

    from diptych.files import write_text
    from diptych.profile import COLUMNS

    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(row.row() for row in rows)
    write_text(Path(path), text.getvalue(), "table")


def _measured(row: Counts, options: Options) -> list[Measured]:
    from diptych.devices import get_device
    from diptych.profile import measure

    device = get_device(options.device)
    device.prepare_process(options.matmul)
    return measure(
        row.model,
        device,
        batch_size=options.batch_size,
        precision=options.precision,
        caption_tokens=options.caption_tokens,
    )


def _print(rows: list[Counts], measured: dict[str, list[Measured]]) -> None:
    from diptych.profile import COLUMNS

    lines = [list(COLUMNS), *(row.row() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    for first, *rest in lines:
        print(first.ljust(widths[0]) + "".join(f"  {cell:>{w}}" for cell, w in zip(rest, widths[1:], strict=True)))
    for name, parts in measured.items():
        print(f"{name}:")
        for part in parts:
            memory = f"  {part.memory / 1e6:8.0f} MB" if part.memory else ""
            print(
                f"  {part.part:<14} {1000 * part.seconds:9.1f} ms a batch  {part.per_second:9.1f} per second"
                f"  {part.share_of_peak:6.1%} of this device's matrix speed{memory}"
            )
