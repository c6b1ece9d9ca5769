"""A step that was not taken, since a loss or gradient is not finite: what is written down, and whether the run goes on.

``nonfinite_step_00000012.json`` in the run's folder says which records were in the step, what each loss was, and whose gradients
are not finite. Whether a step can be taken is ``Step``'s to say; here nothing is repaired.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diptych import log
from diptych.distributed import process_group
from diptych.errors import ConfigError
from diptych.files import write_text
from diptych.train.step import Step, StepResult
from diptych.types import Batch

LISTED = 20  # parameters named in the file


def allowed_skips(text: str) -> int:
    """How many steps ``--on-nonfinite`` lets a run leave out: 0 for ``stop``, N for ``skip:N``. Raises ConfigError."""
    policy, mark, number = text.partition(":")
    if text == "stop":
        return 0
    if policy == "skip" and mark and number.isascii() and number.isdecimal() and int(number) > 0:
        return int(number)
    raise ConfigError(f"--on-nonfinite {text!r}: expected stop, or skip:N with N of at least 1.")


@dataclass
class SkippedSteps:
    """How many steps of the run were left out so far, and how many may be."""

    folder: Path
    allowed: int
    count: int = 0

    def path(self, done: int) -> Path:
        """The file about the step after ``done`` others."""
        return self.folder / f"nonfinite_step_{done + 1:08d}.json"

    def leave_out(self, done: int, batches: Sequence[Batch], step: Step, result: StepResult) -> bool:
        """Write down the step after ``done`` others; whether the run may go on without it. A collective."""
        path = self._written(done, batches, step, result)
        if self.count >= self.allowed:
            return False
        self.count += 1
        log.warn(f"step {done + 1} is left out ({self.count} of {self.allowed}): not finite, see {path}")
        return True

    def _written(self, done: int, batches: Sequence[Batch], step: Step, result: StepResult) -> Path:
        group = step.layout.group
        path = self.path(done)
        own = {
            "keys": [key for batch in batches for key in batch.keys],
            "losses": {name: float(value) for name, value in result.losses.items()},
        }
        ranks = process_group.all_gather_object(own, group)
        parameters = step.layout.not_finite()
        values = {
            "step": done + 1,
            "epoch": int(batches[0].epoch),
            "gradient_norm": float(result.gradient_norm),
            "learning_rates": sorted({float(item["lr"]) for item in step.optimizer.param_groups}),
            "precision": step.precision,
            "logit_scale": float(step.layout.objective.model.logit_scale.detach().float().reshape(-1)[0]),
            "ranks": ranks,
            "parameters_without_finite_gradient": {"count": len(parameters), "first": parameters[:LISTED]},
        }
        if step.layout.world.main:
            write_text(path, json.dumps(values, indent=1) + "\n", "report of a step")
        return path


def names_not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of floating-point tensors that hold a number that is not finite."""
    return [name for name, item in state.items() if item.is_floating_point() and not _finite(item)]


@torch.no_grad()
def _finite(item: Tensor) -> bool:
    # A sum of finite numbers may overflow, so a sum that is not finite is looked at again; it reads fp32 once, without a copy.
    return bool(item.sum().isfinite()) or bool(item.isfinite().all())
