"""How scores look on a terminal: one table per data set, chance beside every score."""

from __future__ import annotations

from typing import Any


def print_results(entries: list[dict[str, Any]]) -> None:
    """Print a table per data set: fractions in percent with chance beside them, ranks as they are."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for entry in entries:
        count = ", ".join(f"{value} {name}" for name, value in entry["count"].items())
        table = Table(title=f"{entry['name']} ({count})", title_justify="left", box=None, header_style="bold")
        table.add_column("metric")
        table.add_column("score", justify="right")
        table.add_column("chance", justify="right")
        for name, value in entry["metrics"].items():
            chance = entry["chance"].get(name)
            table.add_row(name, _shown(name, value), "" if chance is None else _shown(name, chance))
        console.print(table)


def _shown(name: str, value: float) -> str:
    return f"{value:.1f}" if name.endswith("_rank") else f"{100 * value:.2f} %"
