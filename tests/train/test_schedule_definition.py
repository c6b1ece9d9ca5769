"""The schedule's defaults, which are open_clip's, and its edges."""

import dataclasses
import math

import pytest
import torch

from diptych.errors import ConfigError
from diptych.train.schedule import ScheduleOptions, cooldown_steps, learning_rate, total_steps, warmup_steps


def test_the_defaults_are_open_clips_with_a_warm_up_that_fits_short_runs():
    assert dataclasses.asdict(ScheduleOptions()) == {
        "epochs": 32,
        "max_steps": 0,
        "warmup": -1.0,
        "lr_scheduler": "cosine",
        "min_lr": 0.0,
        "warmup_start_lr": 0.0,
        "warmup_from_start": False,
        "lr_steps": (),
        "lr_step_gamma": 0.1,
        "epochs_cooldown": 0,
        "lr_cooldown_end": 0.0,
        "lr_cooldown_power": 1.0,
    }


def test_a_run_may_be_one_step_long():
    assert total_steps(ScheduleOptions(epochs=1), 1) == 1
    assert total_steps(ScheduleOptions(max_steps=1), 1000) == 1
    with pytest.raises(ConfigError, match="--epochs 5 gives no step to train"):
        total_steps(ScheduleOptions(epochs=5), 0)


@pytest.mark.parametrize(
    ("warmup", "total", "steps"),
    [
        (-1, 505, 50),
        (-1, 9, 0),
        (-1, 99_999, 9_999),
        (-1, 100_010, 10_000),
        (0.0, 100, 0),
        (0.004, 100, 0),
        (0.026, 100, 3),
        (0.999, 1000, 999),
        (1.0, 1000, 1),
        (1.9, 1000, 1),
    ],
)
def test_warm_up_steps_are_whole(warmup, total, steps):
    result = warmup_steps(ScheduleOptions(warmup=warmup), total)
    assert result == steps
    assert isinstance(result, int)


@pytest.mark.parametrize("step", [0, 1, 6, 7, 8, 50, 98, 99, 100])
@pytest.mark.parametrize(
    ("scheduler", "least", "start"), [("cosine", 0.0, 0.0), ("cosine", 0.3, 0.1), ("const", 0.3, 0.1)]
)
def test_every_rate_is_the_formulas(step, scheduler, least, start):
    options = ScheduleOptions(warmup=7, lr_scheduler=scheduler, min_lr=least, warmup_start_lr=start)
    if step < 7:
        expected = start + (2.0 - start) * (step + 1) / 7
    elif scheduler == "const":
        expected = 2.0
    else:
        expected = least + (2.0 - least) * (1 + math.cos(math.pi * (step - 7) / 93)) / 2
    assert learning_rate(step, options, 2.0, 100) == pytest.approx(expected, rel=1e-12)


def test_a_warm_up_as_long_as_the_run_never_divides_by_nothing():
    options = ScheduleOptions(warmup=10)
    assert learning_rate(9, options, 1.0, 10) == 1.0
    assert learning_rate(10, options, 1.0, 10) == 1.0


@pytest.mark.parametrize("step", [0, 6, 7, 50, 79, 80, 81, 99])
@pytest.mark.parametrize(("end", "power"), [(0.0, 1.0), (0.25, 1.0), (0.25, 2.0)])
def test_a_constant_that_cools_down_is_the_polynomial(step, end, power):
    options = ScheduleOptions(
        warmup=7, lr_scheduler="const-cooldown", epochs_cooldown=2, lr_cooldown_end=end, lr_cooldown_power=power
    )
    if step < 7:
        expected = 2.0 * (step + 1) / 7
    else:
        expected = 2.0 if step < 80 else (1 - (step - 80) / 20) ** power * (2.0 - end) + end
    cooldown = cooldown_steps(options, 10, 100)
    assert cooldown == 20
    assert learning_rate(step, options, 2.0, 100, cooldown) == pytest.approx(expected, rel=1e-12)


def declip_rate(t, base, peak, warmup_steps, max_iter, least=0.0):
    """DeCLIP's learning rate at iteration t, counted from 1."""
    if t < warmup_steps:
        return base + (peak - base) * (t - 1) / (warmup_steps - 1)
    return least + (peak - least) * (1 + math.cos(math.pi * (t - warmup_steps) / (max_iter - warmup_steps))) / 2


@pytest.mark.parametrize("least", [0.0, 1e-5])
@pytest.mark.parametrize(
    ("peak", "warmup", "last"), [(1e-3, 2500, 128_001), (5e-4, 2500, 128_001), (0.2, 5000, 300_001)]
)
def test_declips_curve_is_one_of_ours_with_one_step_less(peak, warmup, last, least):
    options = ScheduleOptions(
        max_steps=last - 1, warmup=warmup - 1, warmup_start_lr=1e-4, warmup_from_start=True, min_lr=least
    )
    for step in (0, 1, 2, 100, warmup - 3, warmup - 2, warmup - 1, warmup, warmup + 1, last // 2, last - 3, last - 2):
        theirs = declip_rate(step + 1, 1e-4, peak, warmup, last, least)
        assert learning_rate(step, options, peak, last - 1) == pytest.approx(theirs, rel=1e-9), step


@pytest.mark.parametrize("given", [(40, 70), (0.4, 0.7), (70, 0.4)])
def test_a_stair_falls_at_its_steps(given):
    options = ScheduleOptions(warmup=10, lr_scheduler="step", lr_steps=given, lr_step_gamma=0.5)
    assert total_steps(dataclasses.replace(options, max_steps=100), 1) == 100
    rates = [learning_rate(step, options, 2.0, 100) for step in (4, 9, 10, 39, 40, 69, 70, 99)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 2.0, 1.0, 1.0, 0.5, 0.5], rel=1e-12)


def test_the_stair_of_source_003_has_ten_levels_that_end_at_the_least_rate():
    """bubbliiiing's 'step': rate x (least / rate)^(n / 9) in the n-th tenth of the run."""
    options = ScheduleOptions(
        warmup=0, lr_scheduler="step", lr_steps=tuple(n / 10 for n in range(1, 10)), lr_step_gamma=0.01 ** (1 / 9)
    )
    for step in range(50):
        expected = 1e-5 * (1e-7 / 1e-5) ** (step // 5 / 9)
        assert learning_rate(step, options, 1e-5, 50) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_the_cool_down_is_open_clips_at_every_step(power):
    scheduler = pytest.importorskip("open_clip_train.scheduler")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = scheduler.const_lr_cooldown(optimizer, 3e-4, 5, 60, 20, power, 1e-5)
    options = ScheduleOptions(
        warmup=5, lr_scheduler="const-cooldown", epochs_cooldown=1, lr_cooldown_end=1e-5, lr_cooldown_power=power
    )
    for step in range(60):
        assert learning_rate(step, options, 3e-4, 60, 20) == pytest.approx(theirs(step), rel=1e-12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr_scheduler": "const-cooldown"}, "go together"),
        ({"epochs_cooldown": 1}, "go together"),
        ({"lr_cooldown_end": 0.1}, "add it"),
        ({"lr_scheduler": "const", "lr_cooldown_power": 2.0}, "add it"),
        ({"lr_scheduler": "step"}, "step and the steps at which the rate falls go together"),
        ({"lr_steps": (0.5,)}, "go together"),
        ({"lr_step_gamma": 0.5}, "--lr-step-gamma goes with"),
        ({"lr_scheduler": "step", "lr_steps": (500.0,)}, "500 is not before the end of a run of 320 steps"),
        ({"warmup_from_start": True, "warmup": 0}, "--warmup-from-start: there is no warm-up"),
    ],
)
def test_a_cool_down_that_would_not_happen_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        total_steps(ScheduleOptions(**values), 10)


def test_a_cool_down_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match="--epochs-cooldown 3 are 30 steps, and the run has 20"):
        cooldown_steps(ScheduleOptions(lr_scheduler="const-cooldown", epochs_cooldown=3), 10, 20)
