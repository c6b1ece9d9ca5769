"""Which curves a run has: loss, learning rate, logit scale, gradient norm, throughput, waiting, and validation scores.

Chooses from the rows of the log; the drawing is ``chart``'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from diptych.report.chart import Chart, Point, Series, draw, smooth
from diptych.report.read import Row, RunFiles, number, points
from diptych.report.scale import percent

DIRECTIONS = (
    ("image_to_text", "Captions found by image", "image"),
    ("text_to_image", "Images found by caption", "text"),
)
MOST_EVALUATIONS = 6


def curves(run: RunFiles) -> str:
    """All charts of a run, as figures one after the other; those without a point are left out."""
    progress, machinery = _training(run)[:2], _training(run)[2:]
    charts = [*progress, *_scores(run), *machinery]
    return "".join(draw(replace(chart, last_step=float(run.steps))) for chart in charts)


def _training(run: RunFiles) -> list[Chart]:
    loss = points(run.train, "loss")
    level = (
        (f"chance: ln {run.batch} = {math.log(run.batch):.2f}", math.log(run.batch))
        if run.batch and run.batch > 1
        else None
    )
    held_out = [
        Series("validation" if name == "val" else name, points(rows, "loss"), "held-out", marked=True)
        for name, rows in _by_name(run).items()
    ]
    return [
        Chart("Loss", "", [*_smoothed(loss, "training"), *held_out], level),
        Chart(
            "In-batch accuracy",
            "% of pairs",
            _smoothed(_percentages(run.train, "batch_accuracy"), "accuracy"),
            from_zero=True,
            top=100,
            show=_percents,
        ),
        Chart("Learning rate", "", [Series("rate", points(run.train, "learning_rate"), "plain")], from_zero=True),
        Chart("Logit scale", "1 / temperature", [Series("scale", points(run.train, "logit_scale"), "plain")]),
        Chart("Gradient norm", "", _smoothed(points(run.train, "gradient_norm"), "norm"), from_zero=True),
        Chart(
            "Throughput",
            "pairs per second",
            _smoothed(points(run.train, "pairs_per_second"), "pairs/s"),
            from_zero=True,
        ),
        Chart(
            "Waiting for data",
            "% of the time",
            _smoothed(_percentages(run.train, "data_wait"), "waiting"),
            from_zero=True,
            top=100,
            show=_percents,
        ),
    ]


def _scores(run: RunFiles) -> list[Chart]:
    charts = []
    chance = {str(row.get("name")): row["chance"] for row in run.results if isinstance(row.get("chance"), Mapping)}
    for name, rows in list(_by_name(run).items())[:MOST_EVALUATIONS]:
        expected = chance.get(name, {})
        for direction, title, hue in DIRECTIONS:
            lines = [
                Series(f"R@{k}", _percentages(rows, f"{direction}_R@{k}"), f"{hue} strength-{k}", marked=True)
                for k in (10, 5, 1)
            ]
            charts.append(_score_chart(f"{title} · {name}", lines, number(expected.get(f"{direction}_R@10")), "R@10"))
        lines = [
            Series(key.replace("top", "top-"), _percentages(rows, key), f"image strength-{strength}", marked=True)
            for key, strength in (("top5", 5), ("top1", 10))
        ]
        charts.append(_score_chart(f"Zero-shot accuracy · {name}", lines, number(expected.get("top1")), "top-1"))
    return charts


def _score_chart(title: str, lines: list[Series], expected: float | None, of: str) -> Chart:
    level = None if expected is None else (f"chance {of}: {percent(expected)}", 100 * expected)
    return Chart(title, "%", lines, level, from_zero=True, top=100, show=_percents)


def _by_name(run: RunFiles) -> dict[str, tuple[Row, ...]]:
    names = dict.fromkeys(str(row.get("name", "validation")) for row in run.evaluations)
    return {name: tuple(row for row in run.evaluations if str(row.get("name", "validation")) == name) for name in names}


def _percentages(rows: tuple[Row, ...], key: str) -> list[Point]:
    return [(step, 100 * value) for step, value in points(rows, key)]


def _percents(value: float) -> str:
    return percent(value / 100)


def _smoothed(line: list[Point], name: str) -> list[Series]:
    """The raw line, faint, under its running mean; the raw one alone where there are too few points to smooth."""
    if len(line) < 40:
        return [Series(name, line, "plain")]
    return [Series("raw", line, "raw", read=False), Series(name, smooth(line), "plain")]
