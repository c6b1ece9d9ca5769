"""``diptych report``: rewrite a run's page from the files in its folder, or compare several runs on a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from diptych.commands import command


@dataclass(frozen=True)
class Options:
    """Which runs."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs, as made by diptych train --output; several are compared on one page."""
    output: str = ""
    """File of the comparison; empty makes comparison.html beside the first run."""


@command("report", example="diptych report runs/a")
def main(options: Options) -> int:
    """Write report.html and curves of a run; of several runs, one page that compares them."""
    from diptych.commands._tables import print_summaries
    from diptych.errors import ConfigError, SourceError
    from diptych.report import read_run, summary, write_comparison, write_report

    if not options.runs:
        raise ConfigError("no run was named: give the --output folder of a diptych train run, or of several.")
    for run in options.runs:
        if not ((run / "metrics.jsonl").is_file() or (run / "results.json").is_file()):
            raise SourceError(
                f"{run}: no metrics.jsonl or results.json here; give the --output folder of a diptych train run."
            )
    print_summaries([summary(read_run(run)) for run in options.runs])
    if len(options.runs) == 1:
        print(write_report(options.runs[0]))
        return 0
    target = Path(options.output) if options.output else options.runs[0].resolve().parent / "comparison.html"
    print(write_comparison(options.runs, target))
    return 0
