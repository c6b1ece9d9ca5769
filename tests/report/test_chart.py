"""Charts: well-formed, true to the points, robust to spikes."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, Series, draw, smooth, thin
from diptych.report.read import number

finite = st.floats(-1e30, 1e30).map(lambda y: number(y) or 0.0)


@settings(max_examples=80, deadline=None)
@given(ys=st.lists(finite, min_size=1, max_size=70), level=st.none() | finite, zero=st.booleans())
def test_any_points_give_well_formed_svg(ys, level, zero):
    points = [(float(step), y) for step, y in enumerate(ys)]
    chart = Chart(
        'a "b" <c>',
        "&",
        [Series("x<y", points, "plain", marked=True)],
        None if level is None else ("l & m", level),
        zero,
    )
    figure = ElementTree.fromstring(draw(chart))
    assert not re.search("nan|inf", ElementTree.tostring(figure, encoding="unicode").lower().replace("info", ""))


@pytest.mark.parametrize("ys", [[0.0, 0.0], [100.0], [250.0, 300.0], [-5.0, 99.0], [1e-12, 3e-12]])
def test_an_axis_with_a_top_always_has_two_ticks(ys):
    points = [(float(step), y) for step, y in enumerate(ys)]
    figure = draw(Chart("Waiting", "%", [Series("x", points, "plain")], from_zero=True, top=100))
    assert figure.count('class="grid"') >= 2


def test_no_points_give_no_chart():
    assert draw(Chart("Loss", "", [Series("x", [], "plain")])) == ""


def test_points_stand_where_the_axes_say():
    figure = draw(Chart("Rate", "", [Series("x", [(0.0, 0.0), (50.0, 5.0), (100.0, 10.0)], "plain")]))
    first, middle, last = re.search(r'points="([^"]+)"', figure)[1].split()
    assert first == f"{LEFT:.1f},{HEIGHT - BOTTOM:.1f}"
    assert last.split(",")[0] == f"{WIDTH - RIGHT:.1f}"
    x, y = map(float, middle.split(","))
    assert x == pytest.approx((LEFT + WIDTH - RIGHT) / 2, abs=0.1)
    top = HEIGHT - BOTTOM - 10.0 / 12.5 * (HEIGHT - BOTTOM - TOP)
    assert float(last.split(",")[1]) in (pytest.approx(top, abs=0.2), pytest.approx(TOP, abs=0.2))
    assert y == pytest.approx((HEIGHT - BOTTOM + float(last.split(",")[1])) / 2, abs=0.1)


def test_the_level_of_chance_is_drawn_and_named():
    figure = draw(Chart("Loss", "", [Series("x", [(1.0, 5.0), (2.0, 3.0)], "plain")], ("chance: ln 256", 5.545)))
    assert 'class="level"' in figure and "chance: ln 256" in figure


def test_readings_say_step_and_value():
    figure = draw(Chart("Loss", "", [Series("loss", [(10.0, 5.0), (20.0, 3.25)], "plain")]))
    assert "step 10 · loss 5" in figure and "step 20 · loss 3.25" in figure


def test_one_spike_does_not_flatten_the_curve():
    points = [(float(step), 1.0 + (step % 7) / 10) for step in range(300)]
    points[150] = (150.0, 500.0)
    ticks = re.findall(r'text-anchor="end">([\d.]+)</text>', draw(Chart("Norm", "", [Series("x", points, "plain")])))
    assert max(map(float, ticks)) < 5


@given(st.lists(finite, min_size=1, max_size=3000))
def test_thinning_keeps_ends_and_extremes_in_order(ys):
    points = [(float(step), y) for step, y in enumerate(ys)]
    kept = thin(points, 50)
    assert kept == sorted(kept) and len(kept) <= 55
    assert {points[0], points[-1]} <= set(kept) <= set(points)
    assert min(y for _, y in kept) == min(ys) and max(y for _, y in kept) == max(ys)


def test_the_trend_does_not_lag_and_ignores_a_spike():
    line = [(float(step), 2.0 * step) for step in range(1000)]
    line[500] = (500.0, 1e6)
    for x, y in smooth(line):
        assert y == pytest.approx(2 * x, abs=4)
    assert smooth([(1.0, 5.0)]) == [(1.0, 5.0)]
