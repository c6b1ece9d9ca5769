"""Several runs on one page: their summaries, the options in which they differ, and their curves laid over each other.

Made from the runs' files, like a run's own page. It measures and tests nothing: ``diptych evaluate --against`` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from diptych import __version__
from diptych.report.chart import Chart, Point, Series, draw, smooth
from diptych.report.read import RunFiles, points
from diptych.report.scale import percent
from diptych.report.summary import summary, summary_table

COLORS = 8  # run-0 to run-7 of the style sheet; a ninth run begins again
CURVES = (
    ("Training loss", "train", "loss", False),
    ("Held-out loss", "eval", "loss", False),
    ("Captions found by image, R@5", "eval", "image_to_text_R@5", True),
    ("Images found by caption, R@5", "eval", "text_to_image_R@5", True),
    ("Captions found by image, R@10", "eval", "image_to_text_R@10", True),
    ("Images found by caption, R@10", "eval", "text_to_image_R@10", True),
    ("Zero-shot accuracy, top-1", "eval", "top1", True),
    ("Throughput, pairs per second", "train", "pairs_per_second", False),
)
OWN = ("output", "name", "logs", "resume")  # options in which every two runs differ


def comparison(runs: Sequence[RunFiles]) -> str:
    """Return the whole HTML text."""
    folder = resources.files("diptych.report")
    template = Template((folder / "page.html").read_text(encoding="utf-8"))
    sections = [
        ("results", "Results", "The last evaluation of each run.", summary_table([summary(run) for run in runs])),
        ("options", "What differs", "Options that are not the same in all runs.", _differences(runs)),
        ("curves", "How they learned", "Point at a curve to read its values.", _curves(runs)),
    ]
    shown = [item for item in sections if item[3]]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _, _ in shown)
    return template.substitute(
        title=escape(f"{len(runs)} runs compared"),
        style=(folder / "page.css").read_text(encoding="utf-8"),
        model=escape(" · ".join(run.name for run in runs)),
        facts="",
        notes="".join(f'<p class="note">{escape(run.name)}: {escape(note)}</p>' for run in runs for note in run.notes),
        headline="",
        contents=f'<nav aria-label="Contents">{links}</nav>',
        sections="".join(
            f'<section id="{name}"><header><h2>{title}</h2><p>{subtitle}</p></header>{body}</section>'
            for name, title, subtitle, body in shown
        ),
        version=escape(__version__),
    )


def _curves(runs: Sequence[RunFiles]) -> str:
    figures = []
    for title, phase, key, is_share in CURVES:
        lines = [
            Series(run.name, _line(run, phase, key, is_share), f"run-{index % COLORS}", marked=phase == "eval")
            for index, run in enumerate(runs)
        ]
        shares: dict[str, Any] = {"from_zero": True, "top": 100, "show": _percents} if is_share else {}
        figures.append(draw(Chart(title, "%" if is_share else "", lines, **shares)))
    body = "".join(figures)
    return f'<div class="charts">{body}</div>' if body else ""


def _line(run: RunFiles, phase: str, key: str, is_share: bool) -> list[Point]:
    """One curve; of an evaluation, that of the first data set which has the figure."""
    if phase == "train":
        line = points(run.train, key)
        return smooth(line) if len(line) >= 40 else line
    names = dict.fromkeys(str(row.get("name", "")) for row in run.evaluations if key in row)
    first = next(iter(names), "")
    rows = tuple(row for row in run.evaluations if str(row.get("name", "")) == first)
    return [(step, value * (100 if is_share else 1)) for step, value in points(rows, key)]


def _differences(runs: Sequence[RunFiles]) -> str:
    options = [_flat(run.config) for run in runs]
    names = dict.fromkeys(name for values in options for name in values)
    rows = ""
    for name in names:
        values = [flat.get(name, "–") for flat in options]
        if name not in OWN and any(value != values[0] for value in values):
            cells = "".join(f"<td>{escape(str(value))}</td>" for value in values)
            rows += f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(run.name)}</th>' for run in runs)
    return f'<div class="scroll"><table class="plain"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    flat = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    for table in config.values():
        if isinstance(table, Mapping):
            flat |= table
    return flat


def _percents(value: float) -> str:
    return percent(value / 100)
