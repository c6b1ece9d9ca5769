"""``diptych profile``: parameters and operations of architectures, in open_clip's columns; with --measure also the clock.

Words and files only; the counting is ``diptych.profile``'s.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from diptych.commands import command

if TYPE_CHECKING:
    from diptych.profile import Counts


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
    """measure: pictures and texts at a time."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """measure: arithmetic inside the towers."""
    caption_tokens: int = 16
    """measure: tokens of a caption, start and end included."""
    device: str = "auto"
    """measure: accelerator."""
    json: bool = False
    """One JSON list instead of a table."""


@command("profile", example="diptych profile --model ViT-L-14 --results-file profile.csv")
def main(options: Options) -> int:
    """Count parameters (millions) and floating-point operations (billions, one picture, one full text) of architectures."""
    from diptych import log
    from diptych.files import write_text
    from diptych.models import list_models
    from diptych.profile import COLUMNS, count

    names = list_models() if options.model == "all" else [name.strip() for name in options.model.split(",")]
    with log.progress("counting", len(names)) as tell:
        rows = []
        for place, name in enumerate(names, start=1):
            rows.append(count(name))
            tell(place)
    rows.sort(key=lambda row: (row.gflops, row.mparams, row.model))
    if options.results_file:
        from pathlib import Path

        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(row.row() for row in rows)
        write_text(Path(options.results_file), text.getvalue(), "table")
    measured = {row.model: _measured(row, options) for row in rows} if options.measure else {}
    if options.json:
        print(json.dumps([{**dataclasses.asdict(row), "measured": measured.get(row.model, [])} for row in rows]))
        return 0
    _print(rows, measured)
    return 0


def _measured(row: Counts, options: Options) -> list[dict[str, Any]]:
    from diptych.devices import get_device
    from diptych.profile import measure

    device = get_device(options.device)
    found = measure(
        row.model,
        device,
        batch_size=options.batch_size,
        precision=options.precision,
        caption_tokens=options.caption_tokens,
    )
    return [dataclasses.asdict(one) for one in found]


def _print(rows: list[Counts], measured: dict[str, list[dict[str, Any]]]) -> None:
    from diptych.profile import COLUMNS

    cells = [list(COLUMNS), *(row.row() for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(COLUMNS))]
    for line in cells:
        print(
            line[0].ljust(widths[0])
            + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        )
    for name, parts in measured.items():
        print(f"{name}:")
        for one in parts:
            memory = f"  {one['memory'] / 1e6:8.0f} MB" if one["memory"] else ""
            print(
                f"  {one['part']:<14} {1000 * one['seconds']:9.1f} ms a batch  {one['per_second']:9.1f} per second"
                f"  {one['share_of_peak']:6.1%} of the matrix speed here{memory}"
            )
