"""Tables of scores on a terminal: a table per data set, interval and chance beside every score. It measures nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from diptych.report import Summary


def print_results(entries: list[dict[str, Any]]) -> None:
    """Print a table per data set: fractions in percent with their 95 % intervals and chance, ranks as they are."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for entry in entries:
        count = ", ".join(f"{value} {name}" for name, value in entry["count"].items())
        console.print(f"{entry['name']} ({count})", style="italic", markup=False, soft_wrap=True)
        table = Table(box=None, header_style="bold")
        table.add_column("metric")
        table.add_column("score", justify="right")
        table.add_column("95 % interval", justify="right")
        table.add_column("chance", justify="right")
        for name, value in entry["metrics"].items():
            chance = entry["chance"].get(name)
            ends = entry.get("intervals", {}).get(name)
            spread = f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f}" if ends else ""
            table.add_row(name, _shown(name, value), spread, "" if chance is None else _shown(name, chance))
        console.print(table)
        _confusions(console, entry)


def print_differences(entries: list[dict[str, Any]]) -> None:
    """Print, for entries that were compared with other weights, each difference with its interval and p-value."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for entry in entries:
        against = entry.get("against")
        if not against:
            continue
        title = f"{against['weights']} minus these weights, on {entry['name']}, the same queries"
        console.print(title, style="italic", markup=False, soft_wrap=True)
        table = Table(box=None, header_style="bold")
        for head in ("metric", "difference", "95 % interval", "p"):
            table.add_column(head, justify="left" if head == "metric" else "right")
        for name, row in against["differences"].items():
            spread = f"{100 * row['low']:+.2f} to {100 * row['high']:+.2f}"
            p = f"{row['p']:.2g}" if row["p"] >= 1e-4 else "< 0.0001"
            table.add_row(name, f"{100 * row['difference']:+.2f}", spread, p)
        console.print(table)


def _confusions(console: Console, entry: dict[str, Any]) -> None:
    worst = [item for item in entry.get("confusions", []) if item[2] > 1][:5]
    if worst:
        listed = "; ".join(f"{true} classified as {answer} {times} times" for true, answer, times in worst)
        console.print(f"most often confused: {listed}", markup=False, soft_wrap=True)


def _shown(name: str, value: float) -> str:
    return f"{value:.1f}" if name.endswith("_rank") else f"{100 * value:.2f} %"


def print_summaries(summaries: list[Summary], stderr: bool = False) -> None:
    """Print a row per run: name, metrics, FPS, waiting for data, steps, epochs, precision, batch size.

    Where the screen is too narrow for that, a column per run.
    """
    from rich.console import Console

    from diptych.report import HEADS, TITLES, columns

    metrics = columns(summaries)
    lines = [[HEADS[0], *(TITLES.get(name, name) for name in metrics), *HEADS[1:]]]
    for summary in summaries:
        name, *rest = summary.cells()
        scores = [_shown(key, summary.metrics[key]) if key in summary.metrics else "–" for key in metrics]
        lines.append([name, *scores, *rest])
    console = Console(stderr=stderr)
    table = _table(lines)
    if console.measure(table, options=console.options.update(width=10_000)).maximum > console.width:
        table = _table([list(line) for line in zip(*lines, strict=True)])
    console.print(table)


def _table(lines: list[list[str]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold")
    for number, head in enumerate(lines[0]):
        table.add_column(Text(head), justify="right" if number else "left", no_wrap=True)
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    return table
