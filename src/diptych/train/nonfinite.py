"""A step that was not taken, since a loss or gradient is not finite: what is written down, and whether the run goes on.

``nonfinite_step_00000012.json`` in the run's folder says which records were in the step, what each loss was, and whose gradients
are not finite. Where the device decides whether a step is taken (``gate``), it is asked when a row of the metric log, a
checkpoint or a measurement is due; what the file says is kept until then. Whether a step can be taken is ``Step``'s to say; here
nothing is repaired.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from diptych import log
from diptych.data import Position
from diptych.distributed import process_group
from diptych.errors import ConfigError
from diptych.files import write_text
from diptych.train.step import Step, StepResult
from diptych.types import Batch

LISTED = 20  # parameters named in the file
UNREAD = 1 << 20  # pairs whose names are kept until their steps are known to be finite


def allowed_skips(text: str) -> int:
    """How many steps ``--on-nonfinite`` lets a run leave out: 0 for ``stop``, N for ``skip:N``. Raises ConfigError."""
    policy, mark, number = text.partition(":")
    if text == "stop":
        return 0
    if policy == "skip" and mark and number.isascii() and number.isdecimal() and int(number) > 0:
        return int(number)
    raise ConfigError(f"--on-nonfinite {text!r}: expected stop, or skip:N with N of at least 1.")


@dataclass(frozen=True)
class StepFacts:
    """What a report says of the step after ``done`` others, which began at the position ``before``.

    Values are scalars, on the device where it decides whether a step is taken. ``marks``: a number for each of the ``parameters``
    with a gradient, not finite where this process's part of it is not; None where the gradients are still there to be asked.
    """

    done: int
    before: Position
    keys: tuple[str, ...]
    epoch: int
    learning_rates: tuple[float, ...]
    loss: Tensor
    losses: dict[str, Tensor]
    gradient_norm: Tensor
    logit_scale: Tensor
    parameters: list[str] | None = None
    marks: Tensor | None = None


@dataclass
class SkippedSteps:
    """How many steps of the run were left out so far, and how many may be; and steps of which it is not known yet."""

    folder: Path
    allowed: int
    count: int = 0
    unread: list[tuple[StepFacts, Tensor]] = field(default_factory=list)

    def path(self, done: int) -> Path:
        """The file about the step after ``done`` others."""
        return self.folder / f"nonfinite_step_{done + 1:08d}.json"

    def facts(self, done: int, before: Position, batches: Sequence[Batch], step: Step, result: StepResult) -> StepFacts:
        """What a report on the step would say; reads nothing from the device."""
        scale = step.layout.objective.model.logit_scale.detach().float().reshape(-1)[0]
        gated = isinstance(result.finite, Tensor)
        return StepFacts(
            done,
            before,
            tuple(key for batch in batches for key in batch.keys),
            int(batches[0].epoch),
            tuple(sorted({float(item["lr"]) for item in step.optimizer.param_groups})),
            result.loss,
            result.losses,
            result.gradient_norm,
            scale.clone() if gated else scale,
            step.layout.marked() if gated else None,
            step.layout.gradient_marks() if gated else None,
        )

    def remember(self, facts: StepFacts, finite: Tensor) -> bool:
        """Keep what a report would say until it is known whether the step is ``finite``; whether that must be asked now."""
        self.unread.append((facts, finite))
        return sum(len(each.keys) for each, _ in self.unread) > UNREAD

    def not_finite(self) -> list[StepFacts]:
        """The facts of the steps that were not finite, of those that are remembered: read at once, and forgotten."""
        unread, self.unread = self.unread, []
        if not unread:
            return []
        finite = torch.stack([flag for _, flag in unread]).tolist()
        return [facts for (facts, _), taken in zip(unread, finite, strict=True) if not taken]

    def leave_out(self, facts: StepFacts, step: Step) -> bool:
        """Write down a step that was not taken; whether the run may go on without it. A collective."""
        path = self._written(facts, step)
        if self.count >= self.allowed:
            return False
        self.count += 1
        log.warn(f"step {facts.done + 1} is left out ({self.count} of {self.allowed}): not finite, see {path}")
        return True

    def _written(self, facts: StepFacts, step: Step) -> Path:
        path = self.path(facts.done)
        own = {"keys": facts.keys, "losses": {name: float(value) for name, value in facts.losses.items()}}
        ranks = process_group.all_gather_object(own, step.layout.group)
        parameters = _parameters_not_finite(facts, step)
        values = {
            "step": facts.done + 1,
            "epoch": facts.epoch,
            "gradient_norm": float(facts.gradient_norm),
            "learning_rates": facts.learning_rates,
            "precision": step.precision,
            "logit_scale": float(facts.logit_scale),
            "ranks": ranks,
            "parameters_without_finite_gradient": {"count": len(parameters), "first": parameters[:LISTED]},
        }
        if step.layout.world.main:
            write_text(path, json.dumps(values, indent=1) + "\n", "report of a step")
        return path


def _parameters_not_finite(facts: StepFacts, step: Step) -> list[str]:
    """Names of the parameters whose gradients were not finite everywhere. A collective."""
    if facts.marks is None or facts.parameters is None:
        return step.layout.not_finite()
    own = facts.marks.isfinite().tolist()
    ranks = process_group.all_gather_object(
        [name for name, good in zip(facts.parameters, own, strict=True) if not good]
    )
    return list(dict.fromkeys(name for rank in ranks for name in rank))


def names_not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """The names of floating-point tensors that hold a number that is not finite. Waits for each device once."""
    devices: dict[torch.device, list[str]] = {}
    for name, item in state.items():
        if item.is_floating_point():
            devices.setdefault(item.device, []).append(name)
    # A sum of finite numbers may overflow, so a sum that is not finite is looked at again; it reads fp32 once, without a copy.
    suspects = {name for names in devices.values() for name in _with_endless_sums(names, state)}
    return [name for name in state if name in suspects and not bool(state[name].isfinite().all())]


@torch.no_grad()
def _with_endless_sums(names: Sequence[str], state: Mapping[str, Tensor]) -> list[str]:
    finite = torch.stack([state[name].sum().isfinite() for name in names]).tolist()
    return [name for name, good in zip(names, finite, strict=True) if not good]
