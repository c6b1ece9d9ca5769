"""Write the tables of docs/open_clip.md: every training flag of open_clip and what it is here, and what was measured faster.

    python scripts/open_clip_flags.py            writes the page
    python scripts/open_clip_flags.py --check    exit code 1 if the page is not what this script writes

The flags come from src/diptych/commands/_open_clip_flags.toml, the measurements from benchmarks/results/race.json. The rest of
the page is written by hand, and left as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

from diptych.commands._open_clip_flags import OpenClipFlag, open_clip_flags
from diptych.train.config import tree_for

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "open_clip.md"
RACE = ROOT / "benchmarks" / "results" / "race.json"
PEER = "open_clip"


def defaults() -> dict[str, Any]:
    """Our default of every option of training, by flag."""

    def walk(tree: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for item in dataclasses.fields(tree):
            value = getattr(tree, item.name)
            values |= walk(value) if dataclasses.is_dataclass(value) else {"--" + item.name.replace("_", "-"): value}
        return values

    return walk(tree_for("clip")())


def shown(value: Any) -> str:
    """A default as a cell: code, or nothing where there is none."""
    if value is None or value is False or value in ("", ()):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else "on" if value is True else f"`{value}`"


def flag_row(entry: OpenClipFlag, ours: dict[str, Any]) -> str:
    """One line of the table of flags."""
    spelling = " ".join(f"`{name}`" for name in (entry.name, *entry.aliases))
    where = f" ({entry.only})" if entry.only else ""
    there = f"`{entry.default}`" if entry.default is not None else ""
    here = shown(ours.get(entry.name)) if entry.status in ("same", "mapped") else ""
    return f"| {spelling}{where} | {entry.status} | {there} | {here} | {entry.note.replace('|', '&#124;')} |"


def flag_table() -> str:
    """The table of flags, and how many there are of each kind."""
    entries, ours = list(open_clip_flags().values()), defaults()
    counts = {
        status: sum(entry.status == status for entry in entries)
        for status in ("same", "mapped", "no effect", "refused")
    }
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    rows = [flag_row(entry, ours) for entry in sorted(entries, key=lambda entry: entry.name)]
    head = ["| flag | here | default there | default here | |", "|---|---|---|---|---|"]
    return "\n".join([f"{len(entries)} flags: {summary}.", "", *head, *rows])


def measured_table() -> str:
    """What the race measured against open_clip, each row with how exact it is."""
    race = json.loads(RACE.read_text(encoding="utf-8"))
    rows = [
        f"| {row['what']} ({row['ours']}) | {row['peer']} | {row['ratio_of_medians']:.1f}x | {row['exact']} |"
        for row in race["rows"]
        if row["peer"].startswith(PEER)
    ]
    line = f"Measured {race['date']} on two CPU cores; medians, the faster divided by the slower."
    return "\n".join([line, "", "| what | against | ratio | exactness |", "|---|---|---|---|", *rows])


def written(page: str) -> str:
    """The page with its tables."""
    for name, table in (("flags", flag_table()), ("measured", measured_table())):
        begin, end = f"<!-- {name}: written by scripts/open_clip_flags.py -->", f"<!-- {name}: end -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        page = pattern.sub(lambda _, text=f"{begin}\n\n{table}\n\n{end}": text, page)
    return page


def main() -> int:
    """Write or check the page; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is out of date")
    page = PAGE.read_text(encoding="utf-8")
    if parser.parse_args().check:
        if page != written(page):
            print(f"{PAGE.name} is out of date: python scripts/open_clip_flags.py writes it", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(written(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
