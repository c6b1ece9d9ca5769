"""The results: a table per data set, with chance beside every score and how many times chance it is.

Retrieval stands as two directions by recall and rank; any other metric as a row of its own. No score is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from diptych.report.read import Row, RunFiles, number
from diptych.report.scale import brief, count, percent

DIRECTIONS = (
    ("image_to_text", "Image → captions", "an image is given, its captions are ranked"),
    ("text_to_image", "Caption → images", "a caption is given, its image is ranked"),
)
COLUMNS = (
    ("R@1", "R@1"),
    ("R@5", "R@5"),
    ("R@10", "R@10"),
    ("mean_rank", "mean rank"),
    ("median_rank", "median rank"),
)
NAMES = {
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "mean_per_class": "Mean accuracy per class",
    "text_r_mean": "Mean recall, image → captions",
    "image_r_mean": "Mean recall, caption → images",
    "r_mean": "Mean recall",
    "loss": "Loss",
}


def results(run: RunFiles) -> str:
    """All results as sections; empty where there are none."""
    return "".join(_entry(row) for row in run.results if isinstance(row.get("metrics"), Mapping))


def headline(run: RunFiles) -> str:
    """The few largest figures of the page: recall at ten both ways, or top-1, of the first data set that has them."""
    for row in run.results:
        metrics, chance = _metrics(row, "metrics"), _metrics(row, "chance")
        name = escape(str(row.get("name", "results")))
        wanted = [
            ("text_to_image_R@10", "images found by caption, R@10", "text"),
            ("image_to_text_R@10", "captions found by image, R@10", "image"),
            ("top1", "zero-shot accuracy, top-1", "image"),
        ]
        figures = [
            f'<div class="figure {hue}"><b>{percent(metrics[key], unit=False)}<small>%</small></b>'
            f"<span>{escape(label)} · {name}</span><span>{_beside(metrics[key], chance.get(key), key)}</span></div>"
            for key, label, hue in wanted
            if key in metrics
        ]
        if figures:
            return f'<div class="headline">{"".join(figures)}</div>'
    return ""


def _entry(row: Row) -> str:
    metrics, chance, ends = _metrics(row, "metrics"), _metrics(row, "chance"), _spreads(row)
    counts = " · ".join(f"{count(n)} {escape(what)}" for what, n in _metrics(row, "count").items())
    directions = [item for item in DIRECTIONS if any(f"{item[0]}_{key}" in metrics for key, _ in COLUMNS)]
    shown = {f"{direction}_{key}" for direction, _, _ in directions for key, _ in COLUMNS}
    rest = {key: value for key, value in metrics.items() if key not in shown}
    return (
        f'<section class="result"><h3>{escape(str(row.get("name", "results")))}<span class="unit">{counts}</span></h3>'
        f"{_retrieval(directions, metrics, chance, ends)}{_list(rest, chance, ends)}{_confusions(row)}</section>"
    )


def _retrieval(
    directions: list[tuple[str, str, str]],
    metrics: Mapping[str, float],
    chance: Mapping[str, float],
    ends: Mapping[str, str],
) -> str:
    if not directions:
        return ""
    columns = [item for item in COLUMNS if any(f"{direction[0]}_{item[0]}" in metrics for direction in directions)]
    head = "".join(f'<th scope="col">{escape(title)}</th>' for _, title in columns)
    body = ""
    for direction, title, subtitle in directions:
        cells = "".join(
            f'<td data-name="{escape(name)}">'
            f"{_cell(metrics.get(f'{direction}_{key}'), chance.get(f'{direction}_{key}'), key)}"
            f"{ends.get(f'{direction}_{key}', '')}</td>"
            for key, name in columns
        )
        body += (
            f'<tr class="{direction}"><th scope="row">{escape(title)}<small>{escape(subtitle)}</small></th>{cells}</tr>'
        )
    return (
        f'<div class="scroll"><table class="scores"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: float | None, expected: float | None, key: str) -> str:
    if value is None:
        return "–"
    if "rank" in key:
        return f"<b>{brief(value)}</b><small>{_beside(value, expected, key)}</small>"
    bar = f'<i class="bar"><i style="width:{100 * min(1.0, max(0.0, value)):.1f}%"></i></i>'
    return f"<b>{percent(value)}</b>{bar}<small>{_beside(value, expected, key)}</small>"


def _beside(value: float, expected: float | None, key: str) -> str:
    """Chance, and how many times better than chance; a rank is better when it is lower."""
    if expected is None:
        return ""
    if "rank" in key:
        times = expected / value if value else 0.0
        shown = brief(expected)
    else:
        times = value / expected if expected else 0.0
        shown = percent(expected)
    # What is hardly better than chance is not painted as a success.
    praise = "times" if times >= 2 else "times low"
    return f'chance {shown}<em class="{praise}">{_times(times)}</em>' if times else f"chance {shown}"


def _times(times: float) -> str:
    return f"{times:,.0f}×" if times >= 20 else f"{times:.1f}×"


def _list(metrics: Mapping[str, float], chance: Mapping[str, float], ends: Mapping[str, str]) -> str:
    if not metrics:
        return ""
    rows = "".join(
        f"<div><dt>{escape(NAMES.get(key, key.replace('_', ' ')))}</dt><dd><b>{_value(key, value)}</b>"
        f"<small>{_beside(value, chance.get(key), key)}</small>{ends.get(key, '')}</dd></div>"
        for key, value in metrics.items()
    )
    return f'<dl class="more">{rows}</dl>'


def _spreads(row: Row) -> dict[str, str]:
    """The 95 % interval of each metric, as it stands under its score."""
    intervals = row.get("intervals")
    shown = {}
    for name, ends in intervals.items() if isinstance(intervals, Mapping) else ():
        low, high = (number(end) for end in ends) if isinstance(ends, list) and len(ends) == 2 else (None, None)
        if low is not None and high is not None:
            shown[str(name)] = f'<span class="spread">{percent(low, unit=False)} to {percent(high)}</span>'
    return shown


def _confusions(row: Row) -> str:
    """The mistakes that were made more than once, as a sentence; none for other results."""
    confusions = row.get("confusions")
    often = [
        f"{escape(str(true))} called {escape(str(answer))} ({count(times)})"
        for true, answer, times in (item for item in confusions if isinstance(item, list) and len(item) == 3)
        if (number(times) or 0) > 1
    ] if isinstance(confusions, list) else []  # fmt: skip
    return f'<p class="confusions"><small>Most often confused: {"; ".join(often[:8])}.</small></p>' if often else ""


def _value(key: str, value: float) -> str:
    is_share = 0 <= value <= 1 and ("R@" in key or "mean" in key or key.startswith("top") or "accuracy" in key)
    return percent(value) if is_share and "rank" not in key else brief(value)


def _metrics(row: Row, key: str) -> dict[str, float]:
    values = row.get(key)
    known = {str(name): number(value) for name, value in values.items()} if isinstance(values, Mapping) else {}
    return {name: value for name, value in known.items() if value is not None}
