"""The learning rate over time: linear warm-up, then a cosine (to zero), a constant, one that cools down at the end, or a stair.

The formulas are open_clip's; ``--warmup-from-start`` makes the warm-up DeCLIP's, whose first step has the start value itself.

A pure function of the step, so that a resumed run needs no state for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from diptych.config import Count, NotNegative
from diptych.errors import ConfigError


@dataclass(frozen=True)
class ScheduleOptions:
    """How long to train and how the learning rate moves."""

    epochs: Count = 32
    """Passes over the training data."""
    max_steps: Count = 0
    """Length of the whole run in optimizer steps; 0 takes it from --epochs."""
    warmup: float = -1.0
    """Warm-up in steps; below 1, a share of the run; -1 means 10000 steps but at most a tenth of the run."""
    lr_scheduler: Literal["cosine", "const", "const-cooldown", "step"] = "cosine"
    """What follows the warm-up: a cosine to --min-lr, a constant, one that falls in the last epochs, or a stair (step)."""
    lr_steps: tuple[NotNegative, ...] = ()
    """Steps of the run at which the rate of --lr-scheduler step falls; below 1, shares of the run."""
    lr_step_gamma: NotNegative = 0.1
    """Factor by which the rate of --lr-scheduler step falls each time."""
    epochs_cooldown: Count = 0
    """Epochs at the end in which const-cooldown falls to --lr-cooldown-end."""
    lr_cooldown_end: NotNegative = 0.0
    """Where const-cooldown ends; at most each group's own peak."""
    lr_cooldown_power: NotNegative = 1.0
    """Power of const-cooldown's fall; 1 is a straight line."""
    min_lr: NotNegative = 0.0
    """Where the cosine ends; at most each group's own peak."""
    warmup_start_lr: NotNegative = 0.0
    """Where the warm-up begins; at most each group's own peak."""
    warmup_from_start: bool = False
    """The first step has --warmup-start-lr itself, as DeCLIP's; without it, the first of --warmup equal rises above it."""


def total_steps(options: ScheduleOptions, steps_per_epoch: int) -> int:
    """The length of the run in steps. Raises ConfigError when it would be nothing, or an option would have no effect."""
    total = options.max_steps or options.epochs * steps_per_epoch
    if options.min_lr and options.lr_scheduler != "cosine":
        raise ConfigError(f"--min-lr {options.min_lr:g} is where a cosine ends; it goes with --lr-scheduler cosine.")
    cools = options.lr_scheduler == "const-cooldown"
    if cools != bool(options.epochs_cooldown):
        raise ConfigError(
            f"--lr-scheduler {options.lr_scheduler} with --epochs-cooldown {options.epochs_cooldown}: const-cooldown and a "
            "number of epochs go together; give both or neither."
        )
    if not cools and (options.lr_cooldown_end or options.lr_cooldown_power != 1):
        raise ConfigError("--lr-cooldown-end and --lr-cooldown-power go with --lr-scheduler const-cooldown; add it.")
    if (options.warmup_start_lr or options.warmup_from_start) and not warmup_steps(options, total):
        flag = f"--warmup-start-lr {options.warmup_start_lr:g}" if options.warmup_start_lr else "--warmup-from-start"
        raise ConfigError(f"{flag}: there is no warm-up; give --warmup.")
    _check_stair(options, total)
    if total < 1:
        raise ConfigError(
            f"--epochs {options.epochs} gives no step to train; give --epochs or --max-steps of at least 1."
        )
    return total


def _check_stair(options: ScheduleOptions, total: int) -> None:
    """Raise ConfigError for a stair without steps, steps without a stair, and steps that the run never comes to."""
    is_stair = options.lr_scheduler == "step"
    if is_stair != bool(options.lr_steps):
        raise ConfigError(
            f"--lr-scheduler {options.lr_scheduler} with {len(options.lr_steps)} --lr-steps: step and the steps at which the "
            "rate falls go together; give both or neither."
        )
    if not is_stair and options.lr_step_gamma != ScheduleOptions.lr_step_gamma:
        raise ConfigError("--lr-step-gamma goes with --lr-scheduler step; add it.")
    late = [step for step in stair(options, total) if step >= total]
    if late:
        raise ConfigError(f"--lr-steps: {late[0]} is not before the end of a run of {total} steps; leave it out.")


def stair(options: ScheduleOptions, total: int) -> list[int]:
    """The steps, counted from 0, from which on the rate is lower."""
    return sorted(round(step * total) if step < 1 else int(step) for step in options.lr_steps)


def warmup_steps(options: ScheduleOptions, total: int) -> int:
    """The number of warm-up steps of a run of ``total`` steps."""
    if options.warmup < 0:
        return min(10_000, total // 10)
    if options.warmup < 1:
        return round(options.warmup * total)
    return int(options.warmup)


def cooldown_steps(options: ScheduleOptions, steps_per_epoch: int, total: int) -> int:
    """The number of steps at the end in which the rate cools down. Raises ConfigError for more than the run has."""
    steps = options.epochs_cooldown * steps_per_epoch
    if steps > total:
        raise ConfigError(
            f"--epochs-cooldown {options.epochs_cooldown} are {steps} steps, and the run has {total}; lower it."
        )
    return steps


def learning_rate(step: int, options: ScheduleOptions, peak: float, total: int, cooldown: int = 0) -> float:
    """The learning rate of optimizer step ``step``, counted from 0, of parameters whose highest rate is ``peak``.

    ``cooldown`` is the number of steps at the end of the ``total`` in which const-cooldown falls.
    """
    warm = warmup_steps(options, total)
    if step < warm:
        start = min(options.warmup_start_lr, peak)
        return start + (peak - start) * (step + (not options.warmup_from_start)) / warm
    if options.lr_scheduler == "step":
        return float(peak * options.lr_step_gamma ** sum(step >= fall for fall in stair(options, total)))
    if options.lr_scheduler == "const" or (options.lr_scheduler == "const-cooldown" and step < total - cooldown):
        return peak
    if options.lr_scheduler == "const-cooldown":
        end = min(options.lr_cooldown_end, peak)
        left = max(0.0, (total - step) / cooldown)
        return end + (peak - end) * left**options.lr_cooldown_power
    end = min(options.min_lr, peak)
    progress = (step - warm) / max(1, total - warm)
    return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
