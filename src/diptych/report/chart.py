"""One line chart as inline SVG: hairline grid, round ticks, direct labels, and a reading under the pointer without a script.

Draws any series of points; which curves a run has is ``curves``. Colors come from the page's style sheet by class.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from statistics import fmean, median

from diptych.report.scale import SUPERSCRIPTS, brief, inner_ticks, nice_ticks, power_of, tick_labels

Point = tuple[float, float]
WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 12, 38
DRAWN_POINTS = 400  # of one line: more cannot be seen at this size
READINGS = 40  # positions of the pointer that show their values


@dataclass(frozen=True)
class Series:
    """One line: its name, its points (x ascending), a class of the style sheet, and whether single points are marked."""

    name: str
    points: Sequence[Point]
    style: str
    marked: bool = False
    read: bool = True


@dataclass(frozen=True)
class Chart:
    """What to draw.

    ``level`` is a dashed line of reference with its name; ``from_zero`` starts the axis of values at 0 and ``top`` ends it;
    the axis of steps goes from 0 to ``last_step``, or to the last point, so that all charts of a run stand alike.
    """

    title: str
    unit: str
    series: Sequence[Series]
    level: tuple[str, float] | None = None
    from_zero: bool = False
    top: float | None = None
    last_step: float = 0.0
    show: Callable[[float], str] = brief


def draw(chart: Chart) -> str:
    """Return the chart as a ``<figure>``; empty text where there is nothing to draw."""
    series = [item for item in chart.series if item.points]
    if not series:
        return ""
    xs = [x for item in series for x, _ in item.points]
    x_low, x_high = min(0.0, *xs), max(chart.last_step, 1.0, *xs)
    ticks = _y_ticks(chart, series)
    power = power_of(ticks)
    plot = _Plot(x_low, x_high, ticks[0], ticks[-1])
    inner = HEIGHT - TOP - BOTTOM + 8
    body = [
        _grid(plot, ticks, power),
        # A nested drawing cuts off what leaves the plot: a spike above the axis.
        f'<svg x="{LEFT}" y="{TOP - 4}" width="{WIDTH - LEFT}" height="{inner}" '
        f'viewBox="{LEFT} {TOP - 4} {WIDTH - LEFT} {inner}">',
        *(_line(plot, item) for item in series),
        "</svg>",
        _level(plot, chart) if chart.level else "",
        _readings(plot, chart, series),
    ]
    unit = chart.unit + (f" ×10{str(power).translate(SUPERSCRIPTS)}" if power else "")
    return (
        f'<figure class="chart"><figcaption><h3>{escape(chart.title)}</h3><span class="unit">{escape(unit)}</span>'
        f"{_legend(chart, series)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_description(chart, series))}">'
        f"{''.join(body)}</svg></figure>"
    )


def smooth(points: Sequence[Point]) -> list[Point]:
    """The trend of a noisy line, at most 300 points: medians of buckets, then of neighbors, then means of neighbors.

    Medians, because one spike must not lift the trend around it; windows are centered, so that it does not lag.
    """
    count = min(len(points), 300)
    buckets = [points[i * len(points) // count : (i + 1) * len(points) // count] for i in range(count)]
    xs = [bucket[-1][0] for bucket in buckets]
    ys = [median(y for _, y in bucket) for bucket in buckets]
    for center, reach in ((median, count // 40), (fmean, count // 60)):
        ys = [center(window) for window in _windows(ys, reach)]
    return list(zip(xs, ys, strict=True))


def _windows(values: list[float], reach: int) -> list[list[float]]:
    """Each value with its neighbors on both sides; fewer, and as many on either side, towards the ends."""
    last = len(values) - 1
    reaches = [min(reach, index, last - index) for index in range(len(values))]
    return [values[index - r : index + r + 1] for index, r in enumerate(reaches)]


def thin(points: Sequence[Point], limit: int = DRAWN_POINTS) -> list[Point]:
    """At most about ``limit`` points with every bucket's lowest and highest in it, so that no spike is lost."""
    if len(points) <= limit:
        return list(points)
    buckets = max(1, limit // 2)
    extremes: list[Point] = []
    for index in range(buckets):
        bucket = points[index * len(points) // buckets : (index + 1) * len(points) // buckets]
        low, high = min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])
        extremes += sorted({low, high})
    return sorted({points[0], *extremes, points[-1]})


@dataclass(frozen=True)
class _Plot:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)


def _y_ticks(chart: Chart, series: Sequence[Series]) -> list[float]:
    values = sorted(y for item in series for _, y in item.points)
    low, high = values[0], values[-1]
    # One spike must not flatten the rest: the axis ends a little above the 99th percentile where the peak stands far off.
    usual = values[min(len(values) - 1, int(0.99 * len(values)))]
    if high - low > 3 * (usual - low) > 0:
        high = low + 1.5 * (usual - low)
    if chart.level is not None and chart.level[1] <= 1.5 * max(high, 1e-12):
        low, high = min(low, chart.level[1]), max(high, chart.level[1])
    if chart.from_zero:
        low = min(low, 0.0)
    if chart.top is not None:
        high = min(chart.top, high)
    ticks = nice_ticks(low, high, 4)
    if chart.top is None:
        return ticks
    shown = [tick for tick in ticks if tick <= chart.top]
    return shown if len(shown) > 1 else [0.0, chart.top]


def _grid(plot: _Plot, ticks: list[float], power: int) -> str:
    parts = []
    for tick, label in zip(ticks, tick_labels([tick / 10.0**power for tick in ticks]), strict=True):
        y = plot.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    steps = inner_ticks(plot.x_low, plot.x_high, 5)
    for tick, label in zip(steps, tick_labels(steps), strict=True):
        parts.append(f'<text class="tick" x="{plot.x(tick):.1f}" y="{HEIGHT - 19}" text-anchor="middle">{label}</text>')
    parts.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 1}" text-anchor="end">step</text>')
    return "".join(parts)


def _level(plot: _Plot, chart: Chart) -> str:
    name, value = chart.level or ("", 0.0)
    if not plot.y_low <= value <= plot.y_high:
        return ""
    y = plot.y(value)
    drawn = [(plot.x(x), plot.y(v)) for item in chart.series for x, v in thin(item.points)]
    corners = [(x, at) for at in (y - 6, y + 14) if TOP + 4 < at < HEIGHT - BOTTOM for x in (WIDTH - RIGHT, LEFT + 4)]
    side, at = max(corners, key=lambda corner: _clearance(corner, drawn), default=(WIDTH - RIGHT, y - 6))
    anchor = "end" if side > WIDTH / 2 else "start"
    return (
        f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="level-name" x="{side}" y="{at:.1f}" text-anchor="{anchor}">{escape(name)}</text>'
    )


def _clearance(corner: Point, drawn: Sequence[Point]) -> float:
    """How far the lines stay from a label that begins or ends at the corner, in units of the drawing; at most 20."""
    x, y = corner
    return min([20.0, *(abs(v - (y - 4)) for u, v in drawn if abs(u - x) < 0.35 * WIDTH)])


def _line(plot: _Plot, series: Series) -> str:
    shown = thin(series.points)
    path = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in shown)
    dots = ""
    if (series.marked and len(shown) <= 60) or len(shown) == 1:
        dots = "".join(
            f'<circle class="{series.style}" cx="{plot.x(x):.1f}" cy="{plot.y(y):.1f}" r="2.6"/>' for x, y in shown
        )
    return f'<polyline class="{series.style}" points="{path}"/>{dots}'


def _readings(plot: _Plot, chart: Chart, series: Sequence[Series]) -> str:
    """Invisible strips side by side; the one under the pointer shows a vertical line and the values of that step."""
    read = [item for item in series if item.read]
    xs = sorted({x for item in read for x, _ in item.points})
    if len(xs) > READINGS:
        xs = [xs[round(index * (len(xs) - 1) / (READINGS - 1))] for index in range(READINGS)]
    edges = [
        plot.x(plot.x_low),
        *((plot.x(a) + plot.x(b)) / 2 for a, b in pairwise(xs)),
        WIDTH - RIGHT,
    ]
    parts = []
    for index, x in enumerate(xs):
        near = [(item, _nearest(item.points, x)) for item in read]
        label = f"step {brief(x)}" + "".join(f" · {item.name} {chart.show(point[1])}" for item, point in near)
        dots = "".join(
            f'<circle class="{item.style}" cx="{plot.x(x):.1f}" cy="{max(TOP, plot.y(point[1])):.1f}" r="3.5"/>'
            for item, point in near
        )
        parts.append(
            f'<g class="reading"><rect x="{edges[index]:.1f}" y="0" width="{max(1.0, edges[index + 1] - edges[index]):.1f}"'
            f' height="{HEIGHT - BOTTOM}"/><line x1="{plot.x(x):.1f}" x2="{plot.x(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'{dots}<text x="{LEFT}" y="{HEIGHT - 1}">{escape(label)}</text></g>'
        )
    return "".join(parts)


def _nearest(points: Sequence[Point], x: float) -> Point:
    index = bisect.bisect_left(points, (x, float("-inf")))
    return min(points[max(0, index - 1) : index + 1], key=lambda point: abs(point[0] - x))


def _legend(chart: Chart, series: Sequence[Series]) -> str:
    entries = [
        f'<li class="{item.style}"><i></i>{escape(item.name)}'
        + (f" <b>{escape(chart.show(item.points[-1][1]))}</b>" if item.read else "")
        + "</li>"
        for item in series
    ]
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _description(chart: Chart, series: Sequence[Series]) -> str:
    """The chart in one sentence, for readers who do not see it."""
    lines = [
        f"{item.name} from {chart.show(item.points[0][1])} to {chart.show(item.points[-1][1])}"
        for item in series
        if item.read
    ]
    steps = f"steps {brief(series[0].points[0][0])} to {brief(series[0].points[-1][0])}"
    return f"{chart.title} ({chart.unit or 'number'}), {steps}: " + "; ".join(lines)
