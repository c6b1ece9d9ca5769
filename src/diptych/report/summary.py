"""One line that says what came of a run: name, metric, FPS, steps, epochs, precision and batch size, as the sources print it.

FPS is pairs per second over all processes, from the seconds that training took: the pairs of the last 50 logged windows (steps
from one row of the log to the next) by their seconds, as DeCLIP's scripts take the last 50 lines; never the first window, which
holds the start-up; validating and saving are not in it. The share of that time spent waiting for data stands beside it. No
score is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from diptych.report.read import Row, RunFiles, number
from diptych.report.scale import count, percent

WANTED = ("image_to_text_R@5", "text_to_image_R@5", "image_to_text_R@10", "text_to_image_R@10", "top1", "top5")
TITLES = {"top1": "Acc@1", "top5": "Acc@5"}
"""What a column of a metric is called, where it is not the metric's own name: zero-shot tables say Acc@k."""
WINDOWS = 50
HEADS = ("name", "FPS", "waiting for data", "steps", "epochs", "precision", "batch size")


@dataclass(frozen=True)
class Summary:
    """``metrics`` are fractions of the last evaluation; figures are None where the files do not say them.

    ``batch_size`` counts pairs of one step over all processes.
    """

    name: str
    metrics: Mapping[str, float]
    fps: float | None = None
    data_wait: float | None = None
    epochs: float | None = None
    precision: str = ""
    batch_size: int | None = None
    steps: int | None = None

    def cells(self) -> list[str]:
        """The columns of ``HEADS`` as text; a dash where nothing is known."""
        return [
            self.name,
            "–" if self.fps is None else count(int(self.fps)),
            "–" if self.data_wait is None else percent(self.data_wait),
            "–" if self.steps is None else count(self.steps),
            "–" if self.epochs is None else f"{self.epochs:g}",
            self.precision or "–",
            "–" if self.batch_size is None else count(self.batch_size),
        ]


def summary(run: RunFiles) -> Summary:
    """Summarize what the files of a run's folder say."""
    fps, wait = speed(run.train)
    last: Row = run.train[-1] if run.train else {}
    epoch = max((number(row.get("epoch")) or 0.0 for row in run.train), default=0.0)
    # Processes that share a layer see the same pairs.
    processes = int(number(last.get("processes")) or 1) // int(number(run.option("tensor_parallel_degree")) or 1)
    asked = str(run.option("precision", "") or "")
    return Summary(
        name=run.name,
        metrics=_metrics(run),
        fps=fps,
        data_wait=wait,
        steps=run.steps or None,
        epochs=round(epoch, 1) if epoch else None,
        precision=str(last.get("precision") or ("" if asked == "auto" else asked)),
        batch_size=run.batch * max(1, processes) if run.batch else None,
    )


def speed(rows: Sequence[Row]) -> tuple[float | None, float | None]:
    """(pairs per second, share of the time waiting for data) over the last 50 windows of the log, without its first."""
    windows: list[tuple[float, float, float]] = []
    before: float | None = None
    for row in sorted(rows, key=lambda row: number(row.get("step")) or 0.0):
        step, rate = number(row.get("step")), number(row.get("pairs_per_second"))
        if step is None or not rate:
            continue
        if before is not None and step > before:
            # A window of w steps of b pairs took w * b / rate seconds; b is the same in all, and cancels.
            spent = (step - before) / rate
            windows.append((step - before, spent, spent * (number(row.get("data_wait")) or 0.0)))
        before = step
    steps, seconds, waited = (sum(values) for values in zip(*windows[-WINDOWS:], strict=True)) if windows else (0, 0, 0)
    return (steps / seconds, waited / seconds) if seconds else (None, None)


def summary_table(summaries: Sequence[Summary]) -> str:
    """The summaries as an HTML table, one row each."""
    metrics = columns(summaries)
    heads = [HEADS[0], *(TITLES.get(name, name) for name in metrics), *HEADS[1:]]
    body = "".join(f"<tr>{''.join(_cells(item, metrics))}</tr>" for item in summaries)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    return f'<div class="scroll"><table class="plain"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def columns(summaries: Sequence[Summary]) -> list[str]:
    """The metrics that any of the summaries has, in their usual order."""
    return [name for name in WANTED if any(name in item.metrics for item in summaries)]


def _cells(summarized: Summary, metrics: Sequence[str]) -> list[str]:
    name, *rest = (escape(cell) for cell in summarized.cells())
    scores = (percent(summarized.metrics[key]) if key in summarized.metrics else "–" for key in metrics)
    return [f'<th scope="row">{name}</th>', *(f"<td>{cell}</td>" for cell in (*scores, *rest))]


def _metrics(run: RunFiles) -> dict[str, float]:
    """The wanted metrics of the first data set that has them."""
    scores: dict[str, float] = {}
    for row in run.results:
        metrics: Any = row.get("metrics")
        for name in WANTED if isinstance(metrics, Mapping) else ():
            value = number(metrics.get(name))
            if value is not None:
                scores.setdefault(name, value)
    return scores
