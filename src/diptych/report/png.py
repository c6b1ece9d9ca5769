"""Loss and recall curves as PNG files in the run's folder, for slides, chats and people who open folders rather than pages.

Raw lines stand faint under their trend, as on the page. Drawn by matplotlib without a display; where matplotlib is not
installed (the extra ``plots``) the page is all there is, and one line of the log says so.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych import log
from diptych.files import replacing
from diptych.report.chart import Point, smooth
from diptych.report.read import RunFiles, points

LOSS, RECALL = "loss.png", "recall.png"
RECALLS = tuple(f"{way}_R@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10))
SHORTEST_TREND = 40  # points below which a line is its own trend


def write_pngs(run: RunFiles, folder: Path) -> list[Path]:
    """Draw ``loss.png`` and ``recall.png``; what has no points is not drawn, without matplotlib nothing is.

    Returns the paths of what was drawn. Raises OutputError.
    """
    train = points(run.train, "loss")
    losses = [("training", train)] if train else []
    losses += [(f"{name} (held out)", line) for name, line in _evaluated(run, ("loss",))]
    scores = [
        (name, [(step, 100 * value) for step, value in line])
        for name, line in _evaluated(run, (*RECALLS, "top1", "top5"))
    ]
    if (losses or scores) and importlib.util.find_spec("matplotlib") is None:
        log.warn(f"{LOSS} and {RECALL} were not drawn: they need matplotlib; pip install 'diptych[plots]'.")
        return []
    paths = [_draw(folder / LOSS, "Loss", "loss", losses)] if losses else []
    return paths + ([_draw(folder / RECALL, "Held-out scores", "%", scores)] if scores else [])


def _evaluated(run: RunFiles, keys: Sequence[str]) -> list[tuple[str, list[Point]]]:
    names = dict.fromkeys(str(row.get("name", "validation")) for row in run.evaluations)
    lines = []
    for name in names:
        rows = tuple(row for row in run.evaluations if str(row.get("name", "validation")) == name)
        for key in keys:
            line = points(rows, key)
            if line:
                lines.append((name if keys == ("loss",) else f"{name} {key}", line))
    return lines


def _draw(path: Path, title: str, unit: str, lines: Sequence[tuple[str, Sequence[Point]]]) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    for name, line in lines:
        xs, ys = zip(*line, strict=True)
        if len(line) < SHORTEST_TREND:
            axes.plot(xs, ys, label=name, marker="o", markersize=3)
            continue
        (raw,) = axes.plot(xs, ys, alpha=0.3, linewidth=0.8)
        axes.plot(*zip(*smooth(line), strict=True), label=f"{name} (smoothed)", color=raw.get_color())
    axes.set(title=title, xlabel="step", ylabel=unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small")
    png = io.BytesIO()
    figure.savefig(png, format="png")
    with replacing(path, "drawing of the curves") as temporary:
        temporary.write_bytes(png.getvalue())
    return path
