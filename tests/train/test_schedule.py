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
