"""The learning rate over time: linear warm-up, then a cosine (to zero), a constant, or a constant that cools down at the end.

The formulas are open_clip's.

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
    lr_scheduler: Literal["cosine", "const", "const-cooldown"] = "cosine"
    """What follows the warm-up: a cosine down to --min-lr, a constant, or a constant that falls in the last epochs."""
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
    if options.warmup_start_lr and not warmup_steps(options, total):
        raise ConfigError(f"--warmup-start-lr {options.warmup_start_lr:g}: there is no warm-up; give --warmup.")
    if total < 1:
        raise ConfigError(
            f"--epochs {options.epochs} gives no step to train; give --epochs or --max-steps of at least 1."
        )
    return total


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
        return start + (peak - start) * (step + 1) / warm
    if options.lr_scheduler == "const" or (options.lr_scheduler == "const-cooldown" and step < total - cooldown):
        return peak
    if options.lr_scheduler == "const-cooldown":
        end = min(options.lr_cooldown_end, peak)
        left = max(0.0, (total - step) / cooldown)
        return end + (peak - end) * left**options.lr_cooldown_power
    end = min(options.min_lr, peak)
    progress = (step - warm) / max(1, total - warm)
    return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
