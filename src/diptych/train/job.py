"""A training job: the pieces of a run, and how each of the loop's verbs is done (record, validate, save, finish).

``build.prepared`` makes it from the config. It contains no loop, and knows of the config only what it uses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from diptych import log, weights
from diptych.data import Loader, Position
from diptych.distributed import checkpoint, process_group, watch
from diptych.distributed.agreement import Agreement
from diptych.distributed.process_group import World
from diptych.distributed.saving import CheckpointWriter
from diptych.errors import NonFiniteError
from diptych.evaluate import TOKEN_MAPS_FILE, write_token_maps
from diptych.train.average import AVERAGE_FILE
from diptych.train.bad_samples import BadSampleLog
from diptych.train.changes import ModelChange, exported
from diptych.train.nonfinite import SkippedSteps, StepFacts, names_not_finite
from diptych.train.run_folder import Identity, Run
from diptych.train.schedule import ScheduleOptions, learning_rate
from diptych.train.step import Step, StepResult
from diptych.train.validate import ValidationRequest, Validator
from diptych.types import Batch


@dataclass(frozen=True)
class EventSchedule:
    """At which steps the loop logs, validates (on pairs, on labeled images, or both) and saves."""

    log: Callable[[int], bool]
    pairs: Callable[[int], bool]
    labeled: Callable[[int], bool]
    save: Callable[[int], bool]

    def validate(self, done: int) -> bool:
        """Whether there is anything to measure after this step."""
        return self.pairs(done) or self.labeled(done)


@dataclass(frozen=True)
class LearningRate:
    """The schedule of a run of ``total_steps``, whose general peak rate is ``peak``; ``cooldown`` steps at its end."""

    options: ScheduleOptions
    peak: float
    total_steps: int
    cooldown: int = 0

    def at(self, step: int, peak: float | None = None) -> float:
        """The rate of a step, counted from 0, of parameters with their own peak (None: the general one)."""
        highest = self.peak if peak is None else peak
        return learning_rate(step, self.options, highest, self.total_steps, self.cooldown)


@dataclass(frozen=True)
class Job:
    """The pieces of a run, and the loop's verbs. ``values`` is the whole config as plain values, as a checkpoint holds it;
    ``identity`` what a resumed run is compared with.
    """

    run: Run
    world: World
    step: Step
    changes: tuple[ModelChange, ...]
    loader: Loader
    validator: Validator
    sinks: log.Sink
    rate: LearningRate
    events: EventSchedule
    bad_samples: BadSampleLog
    skipped: SkippedSteps
    checkpoints: CheckpointWriter
    agreement: Agreement
    values: Mapping[str, Any]
    identity: Identity

    @property
    def first_step(self) -> int:
        """Steps taken before this sitting."""
        return self.run.first_step

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.rate.total_steps

    def batches(self) -> Iterator[tuple[list[Batch], Position]]:
        """The micro-batches of each step, and the position to resume at after it."""
        watch.phase("loading data")
        for batches, position in self.loader.steps():
            self.bad_samples.append(self.loader.bad)
            self.bad_samples.append_damaged(self.loader.damaged)
            watch.phase("training step")
            yield batches, position
            watch.phase("loading data")

    def set_learning_rate(self, step: int) -> None:
        """Give the optimizer its learning rates for the coming step, counted from 0."""
        for group in self.step.optimizer.param_groups:
            group["lr"] = self.rate.at(step, group["peak_lr"])

    def record(self, done: int, position: Position, result: StepResult, figures: dict[str, float]) -> str:
        """Write a row of the metric log and return the text of the live line. A collective: losses are means over ranks."""
        losses = {f"loss_{name}": item for name, item in result.losses.items()} if len(result.losses) > 1 else {}
        group = self.step.layout.group
        truncation = self.loader.truncation
        row = {
            "epoch": self._epochs(position),
            "time": time.time(),
            **process_group.all_reduce_mean_of({"loss": result.loss, **losses, **result.metrics}, group),
            "learning_rate": self.rate.at(done - 1),
            "gradient_norm": float(result.gradient_norm),
            **figures,
            "pairs": self._pairs(done),
            "precision": self.step.precision,
            "processes": self.world.size,
            "truncated_tokens": sum(stats.tokens for stats in truncation.values()),
            **{f"truncated_captions {name}": stats.captions for name, stats in truncation.items() if stats.captions},
            "bad_samples": len(self.loader.bad),
            **({"damaged_images": len(self.loader.damaged)} if self.loader.damaged else {}),
            **({"skipped_steps": self.skipped.count} if self.skipped.count else {}),
        }
        self.sinks.write("train", done, row)
        return (
            f"loss {row['loss']:.3f} · {row['pairs_per_second']:.0f} pairs/s · waiting for data {row['data_wait']:.0%}"
        )

    def _pairs(self, done: int) -> int:
        """Pairs trained on so far; steps of an earlier sitting may have been of another size."""
        before = int(self.run.state.get("pairs", 0)) if self.run.state else 0
        return before + (done - self.first_step) * self.loader.options.step_size

    def _epochs(self, position: Position) -> float:
        return position.epoch + position.index / max(1, self.loader.count)

    def validate(self, done: int, position: Position) -> None:
        """Measure the model on the validation data and log the scores."""
        if not self.validator.wanted:
            return
        watch.phase("validation")
        request = ValidationRequest(self.events.pairs(done), self.events.labeled(done), last=done == self.total_steps)
        for row in self.validator.measure(self.run.folder, request):
            self.sinks.write("eval", done, {"epoch": self._epochs(position), "time": time.time(), **row})
        process_group.barrier()

    def make_up_validation(self, done: int) -> None:
        """Validate a run that has all its steps, where the last sitting ended while it validated."""
        if not (self.run.folder / "results.json").exists():
            self.validate(done, self.loader.options.start)

    def save(self, done: int, position: Position, wait: bool = False) -> None:
        """Write a checkpoint: weights, optimizer, random state, position in the data, and the config. A collective.

        With --async-save it is pending when this returns, but with ``wait``; ``settle`` waits for it.
        """
        watch.phase("saving a checkpoint")
        layout, device, whole = self.step.layout, self.step.device, self.checkpoints.whole
        tensors = layout.full_state() if whole else layout.own_state()
        self._check_finite(done, tensors)
        state = {
            "step": done,
            "position": {"epoch": position.epoch, "index": position.index},
            "weights": tensors,
            "skipped_steps": self.skipped.count,
            "pairs": self._pairs(done),
            "step_state": self.step.state(whole),
            "random_state": {"cpu": torch.get_rng_state(), "device": device.random_state()},
            "companions": dict(self.identity.companions),
            "architecture": layout.objective.model.config.to_dict(),
            "config": dict(self.values),
            "data": dict(self.identity.data),
        }
        self.checkpoints.save(done, state, wait)

    def settle(self) -> None:
        """Wait for the checkpoint that is being written, if there is one. A collective. Raises SaveFailedError."""
        watch.phase("waiting for a checkpoint")
        self.checkpoints.settle()

    def note(self, done: int, before: Position, batches: list[Batch], result: StepResult) -> None:
        """A step after ``done`` others was given to the device; ``before`` is the position at which it began.

        What became of it is asked now where the host knows it, else by ``read_steps``. A collective. Raises NonFiniteError.
        """
        if result.finite is True:
            return
        facts = self.skipped.facts(done, before, batches, self.step, result)
        if result.finite is False:
            self._leave_out(facts)
        elif self.skipped.remember(facts, result.finite):
            self.read_steps()

    def read_steps(self) -> None:
        """Read what became of the steps since the last time. A collective. Raises NonFiniteError."""
        for facts in self.skipped.not_finite():
            self._leave_out(facts)

    def _leave_out(self, facts: StepFacts) -> None:
        """A step that was not taken, since it was not finite. A collective.

        Raises NonFiniteError when the run may not go on; the weights, which the step did not touch, are saved first.
        """
        if self.skipped.leave_out(facts, self.step):
            return
        done = facts.done
        self.save(done, facts.before, wait=True)
        what = f"step {done + 1}: the loss is {float(facts.loss):g}, the gradient norm {float(facts.gradient_norm):g}; stopped"
        if self.checkpoints.last != done:  # it could not be written, which was said
            raise NonFiniteError(
                f"{what} before the update, see {self.skipped.path(done)}; the weights before it could not be saved."
            )
        protected = checkpoint.protect(self.run.checkpoints, done) if self.world.main else self.run.checkpoints
        process_group.barrier()
        raise NonFiniteError(
            f"{what} before the update, see {self.skipped.path(done)}. The weights before it are kept in {protected}; resume "
            "with a lower --lr, --grad-clip-norm 1, --precision fp32, or --on-nonfinite skip:3."
        )

    def _check_finite(self, done: int, state: Mapping[str, torch.Tensor]) -> None:
        """Raise NonFiniteError, the same on every process, rather than write weights that are not finite."""
        ranks = process_group.all_gather_object(names_not_finite(self.step.layout.local(state)))
        names = list(dict.fromkeys(name for rank in ranks for name in rank))
        if not names:
            return
        self.settle()
        saved = checkpoint.steps(self.run.checkpoints)
        if saved and self.world.main:
            checkpoint.protect(self.run.checkpoints, saved[-1])
        last = (
            f"the last finite checkpoint is {checkpoint.path_of(self.run.checkpoints, saved[-1])}"
            if saved
            else ("no checkpoint was written before")
        )
        raise NonFiniteError(
            f"after step {done}, {len(names)} of {len(state)} weights are not finite (first {names[0]}) and are not saved; "
            f"{last}; try a lower --lr or --grad-clip-norm 1."
        )

    def _write_weights(self, name: str, done: int, state: Mapping[str, torch.Tensor]) -> None:
        """A file of weights in the run's folder, as the architecture names them; rank 0 writes."""
        if self.world.main:
            config = self.step.layout.objective.model.config
            weights.save_state(self.run.folder / name, config, exported(self.changes, state), {"steps": str(done)})

    def _write_token_maps(self, state: Mapping[str, torch.Tensor]) -> None:
        """Beside the weights ``state``, where the objective compares tokens. A collective."""
        layout = self.step.layout
        name = layout.objective.token_maps()
        if name:
            maps = layout.whole(layout.objective.get_submodule(name).state_dict())
            if self.world.main:
                write_token_maps(self.run.folder / TOKEN_MAPS_FILE, maps, exported(self.changes, state))

    def finish(self, done: int) -> None:
        """Write the final weights, and their average beside; the architecture and preprocessing are in their metadata."""
        watch.phase("writing the weights")
        layout = self.step.layout
        state = layout.model_state()  # a collective
        self._check_finite(done, state)
        self._write_weights(weights.WEIGHT_FILE, done, state)
        self._write_token_maps(state)
        if self.step.average is not None:
            with self.step.average.applied():
                self._write_weights(AVERAGE_FILE, done, layout.model_state())
        for name, stats in self.loader.truncation.items():
            if stats.captions:
                log.info(
                    f"{name}: {stats.captions} of {stats.samples} captions ({stats.captions / stats.samples:.1%}) were "
                    f"truncated, {stats.tokens} tokens in all"
                )
        process_group.barrier()
