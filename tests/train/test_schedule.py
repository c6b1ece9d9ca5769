"""The learning rate by open_clip's formula, and how long a run is."""

import math

import pytest

from diptych.errors import ConfigError
from diptych.train.schedule import ScheduleOptions, learning_rate, total_steps, warmup_steps


def test_warm_up_is_linear_and_the_rest_a_cosine():
    options = ScheduleOptions(warmup=10)
    rates = [learning_rate(step, options, 1.0, 110) for step in range(110)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[109] == pytest.approx(0.5 * (1 + math.cos(math.pi * 99 / 100)))


def test_constant_stays():
    options = ScheduleOptions(warmup=2, lr_scheduler="const")
    assert [learning_rate(step, options, 3.0, 10) for step in (0, 1, 5, 9)] == [1.5, 3.0, 3.0, 3.0]


WARM_UPS = [(-1, 500, 50), (-1, 10**6, 10_000), (0.2, 100, 20), (7, 100, 7), (0, 100, 0)]


@pytest.mark.parametrize(("asked", "total", "steps"), WARM_UPS)
def test_warm_up_is_given_in_steps_or_as_a_share(asked, total, steps):
    assert warmup_steps(ScheduleOptions(warmup=asked), total) == steps


def test_length_comes_from_epochs_or_steps():
    assert total_steps(ScheduleOptions(epochs=3), 10) == 30
    assert total_steps(ScheduleOptions(epochs=3, max_steps=7), 10) == 7
    with pytest.raises(ConfigError, match="at least 1"):
        total_steps(ScheduleOptions(epochs=0), 10)


def test_the_cosine_ends_at_the_least_rate():
    options = ScheduleOptions(warmup=0, min_lr=0.2)
    assert learning_rate(0, options, 1.0, 100) == pytest.approx(1.0)
    assert learning_rate(50, options, 1.0, 100) == pytest.approx(0.6)
    assert learning_rate(100, options, 1.0, 100) == pytest.approx(0.2)


def test_warm_up_begins_where_it_was_asked_to():
    options = ScheduleOptions(warmup=4, warmup_start_lr=0.2)
    assert [learning_rate(step, options, 1.0, 100) for step in range(4)] == pytest.approx([0.4, 0.6, 0.8, 1.0])


def test_a_group_whose_peak_is_lower_than_the_bounds_stays_at_its_peak():
    options = ScheduleOptions(warmup=4, warmup_start_lr=0.2, min_lr=0.2)
    assert {learning_rate(step, options, 0.1, 100) for step in (0, 3, 4, 50, 100)} == {0.1}


def test_after_the_end_the_rate_stays():
    options = ScheduleOptions(warmup=0, min_lr=0.1)
    assert learning_rate(200, options, 1.0, 100) == pytest.approx(0.1)


def test_a_run_of_one_step():
    assert learning_rate(0, ScheduleOptions(warmup=0), 2.0, 1) == 2.0


def test_options_without_an_effect_are_refused():
    with pytest.raises(ConfigError, match="--lr-scheduler cosine"):
        total_steps(ScheduleOptions(min_lr=0.1, lr_scheduler="const"), 10)
    with pytest.raises(ConfigError, match="no warm-up"):
        total_steps(ScheduleOptions(warmup_start_lr=0.1, warmup=0, epochs=1), 10)
    assert total_steps(ScheduleOptions(warmup_start_lr=0.1, warmup=1, min_lr=0.1, epochs=1), 10) == 10
