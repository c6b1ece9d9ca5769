"""Ticks are round, few and cover the data; numbers read as a person writes them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.report.scale import brief, count, duration, inner_ticks, nice_step, nice_ticks, percent, tick_labels


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-4, 1e6), parts=st.integers(2, 8))
def test_ticks_cover_the_data_with_round_even_steps(low, span, parts):
    span = max(span, 2e-4 * abs(low))
    ticks = nice_ticks(low, low + span, parts)
    slack = 1e-6 * max(1.0, span, abs(low))
    assert ticks[0] <= low + slack and ticks[-1] >= low + span - slack
    assert 2 <= len(ticks) <= parts + 3
    step = nice_step(span, parts)
    assert min(abs(step / 10 ** math.floor(math.log10(step) + 1e-9) - f) for f in (1, 2, 2.5, 5, 10)) < 1e-6
    gaps = {round((b - a) / step, 3) for a, b in pairwise(ticks)}
    assert gaps == {1.0}


@given(low=st.floats(-1e5, 1e5), span=st.floats(1e-3, 1e7))
def test_tick_labels_differ_from_each_other(low, span):
    ticks = nice_ticks(low, low + span, 5)
    assert len(set(tick_labels(ticks))) == len(ticks)


def test_ticks_of_one_value_and_inside_a_range():
    assert len(nice_ticks(3.0, 3.0)) >= 2
    assert inner_ticks(0, 1800, 5) == [0, 500, 1000, 1500]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12345.6, "12\u202f346"),
        (81.27, "81.3"),
        (4.207, "4.21"),
        (0.052, "0.052"),
        (-2.0, "\u22122"),
        (4.9e-4, "4.9×10⁻⁴"),
    ],
)
def test_brief_numbers(value, text):
    assert brief(value) == text


def test_percents_counts_and_durations():
    assert percent(0.4217) == "42.2\u202f%" and percent(0.0025) == "0.25\u202f%" and percent(0.0) == "0.0\u202f%"
    assert count(460800) == "460\u202f800" and count(12.8e9) == "12.8 billion"
    assert (
        duration(48) == "48\u202fs"
        and duration(200) == "3\u202fmin 20\u202fs"
        and duration(18720) == "5\u202fh 12\u202fmin"
    )
    assert duration(0.2) == "0\u202fs" and duration(3600) == "1\u202fh"
