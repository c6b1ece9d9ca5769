"""The learning rate over time: linear warm-up, then a cosine (open_clip's formula, to zero) or a constant.

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
    lr_scheduler: Literal["cosine", "const"] = "cosine"
    """What follows the warm-up: a cosine down to --min-lr, or a constant."""
    min_lr: NotNegative = 0.0
    """Where the cosine ends; at most each group's own peak."""
    warmup_start_lr: NotNegative = 0.0
    """Where the warm-up begins; at most each group's own peak."""


def total_steps(options: ScheduleOptions, steps_per_epoch: int) -> int:
    """The length of the run in steps. Raises ConfigError when it would be nothing, or an option would have no effect."""
    total = options.max_steps or options.epochs * steps_per_epoch
    if options.min_lr and options.lr_scheduler != "cosine":
        raise ConfigError(f"--min-lr {options.min_lr:g} is where a cosine ends; it goes with --lr-scheduler cosine.")
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


def learning_rate(step: int, options: ScheduleOptions, peak: float, total: int) -> float:
    """The learning rate of optimizer step ``step``, counted from 0, of parameters whose highest rate is ``peak``."""
    warm = warmup_steps(options, total)
    if step < warm:
        start = min(options.warmup_start_lr, peak)
        return start + (peak - start) * (step + 1) / warm
    if options.lr_scheduler == "const":
        return peak
    end = min(options.min_lr, peak)
    progress = (step - warm) / max(1, total - warm)
    return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
