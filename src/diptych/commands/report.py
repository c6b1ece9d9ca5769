"""``diptych report``: make a run's page again from the files in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from diptych.commands import command


@dataclass(frozen=True)
class Options:
    """Which run."""

    run: Positional[Path]
    """Folder of the run, as made by diptych train --output."""


@command("report", example="diptych report runs/a")
def main(options: Options) -> int:
    """Write report.html of a run: curves, results, pictures, in one file that needs nothing else."""
    from diptych.errors import SourceError
    from diptych.report import write_report

    if not (options.run / "metrics.jsonl").is_file():
        raise SourceError(f"{options.run}: no metrics.jsonl here; give the --output folder of a diptych train run.")
    print(write_report(options.run))
    return 0
