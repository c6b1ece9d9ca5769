"""A training job: everything that the loop calls, built once from the config.

``prepared(config)`` builds it and cleans up after it. The job holds the pieces and says how each of the loop's verbs is
done (record, validate, save, finish); it contains no loop.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from diptych import config as options
from diptych import log, weights
from diptych.data import Loader, Position
from diptych.devices import Device, get_device
from diptych.distributed import checkpoint, process_group
from diptych.distributed.process_group import World
from diptych.distributed.wrap import PRECISIONS, wrap
from diptych.errors import ConfigError
from diptych.objectives import Objective, create_objective
from diptych.registry import did_you_mean
from diptych.train.bad_samples import BadSampleLog
from diptych.train.config import TrainConfig
from diptych.train.locked_features import checked_locks, with_features
from diptych.train.optimizer import create_optimizer
from diptych.train.pipeline import Pipeline, build_pipeline
from diptych.train.run_folder import Run, open_run
from diptych.train.schedule import learning_rate, total_steps
from diptych.train.step import Step, StepResult
from diptych.train.validate import ValidationRequest, Validator
from diptych.types import Batch, Wants


@dataclass(frozen=True)
class EventSchedule:
    """At which steps the loop logs, validates (on pairs, on named pictures, or both) and saves."""

    log: Callable[[int], bool]
    pairs: Callable[[int], bool]
    zeroshot: Callable[[int], bool]
    save: Callable[[int], bool]

    def validate(self, done: int) -> bool:
        """Whether there is anything to look at after this step."""
        return self.pairs(done) or self.zeroshot(done)


@dataclass(frozen=True)
class Job:
    """The pieces of a run, and the loop's verbs."""

    config: TrainConfig
    run: Run
    device: Device
    world: World
    objective: Objective
    step: Step
    pipeline: Pipeline
    loader: Loader
    validator: Validator
    sinks: log.Sink
    total_steps: int
    due: EventSchedule
    ledger: BadSampleLog

    @property
    def first_step(self) -> int:
        """Steps taken before this sitting."""
        return self.run.first_step

    def batches(self) -> Iterator[tuple[list[Batch], Position]]:
        """The micro-batches of each step, and the position to resume at after it."""
        for batches, position in self.loader.steps():
            self.ledger.keep(self.loader.bad)
            yield batches, position

    def set_learning_rate(self, step: int) -> None:
        """Give the optimiser its learning rate for the coming step, counted from 0."""
        rate = learning_rate(step, self.config.schedule, self.config.optimizer.lr, self.total_steps)
        for group in self.step.optimizer.param_groups:
            group["lr"] = rate

    def record(self, done: int, position: Position, result: StepResult, figures: dict[str, float]) -> str:
        """Write a row of the metric log and return the words of the live line."""
        row = {
            "epoch": self._epochs(position),
            "time": time.time(),
            "loss": float(process_group.all_reduce_mean(result.loss)),
            **{f"loss_{name}": float(part) for name, part in result.parts.items() if len(result.parts) > 1},
            **{name: float(value) for name, value in result.metrics.items()},
            "learning_rate": self.step.optimizer.param_groups[0]["lr"],
            "gradient_norm": float(self.step.gradient_norm() if result.gradient_norm is None else result.gradient_norm),
            **figures,
            "pairs": done * self.config.data.batch_size * self.config.accum_freq * self.world.size,
            "precision": self.step.precision,
            "processes": self.world.size,
            "truncated_tokens": sum(one.tokens for one in self.loader.truncation.values()),
            **{
                f"truncated_captions {name}": one.captions
                for name, one in self.loader.truncation.items()
                if one.captions
            },
            "bad_samples": len(self.loader.bad),
        }
        self.sinks.write("train", done, row)
        return (
            f"loss {row['loss']:.3f} · {row['pairs_per_second']:.0f} pairs/s · waiting for data {row['data_wait']:.0%}"
        )

    def _epochs(self, position: Position) -> float:
        return position.epoch + position.index / max(1, len(self.pipeline.train_source))

    def validate(self, done: int, position: Position) -> None:
        """Measure the model on the validation data and log the scores."""
        if not self.validator.wanted:
            return
        looks = ValidationRequest(self.due.pairs(done), self.due.zeroshot(done), last=done == self.total_steps)
        for row in self.validator.measure(self.objective, self.run.folder, looks):
            self.sinks.write("eval", done, {"epoch": self._epochs(position), "time": time.time(), **row})
        process_group.barrier()

    def save(self, done: int, position: Position) -> None:
        """Write a checkpoint: weights, optimiser, random state, place in the data, and the config."""
        if self.world.main:
            state = {
                "step": done,
                "position": {"epoch": position.epoch, "index": position.index},
                "weights": self.objective.state_dict(),
                "step_state": self.step.state(),
                "random_state": {"cpu": torch.get_rng_state(), "device": self.device.random_state()},
                "architecture": self.objective.model.config.to_dict(),
                "config": options.to_dict(self.config),
            }
            checkpoint.save(self.run.checkpoints, done, state, self.config.output.keep_checkpoints)
        process_group.barrier()

    def finish(self, done: int) -> None:
        """Write the final weights, with the architecture and preprocessing in their metadata."""
        if self.world.main:
            weights.save(self.run.folder / weights.WEIGHT_FILE, self.objective.model, {"steps": str(done)})
        for name, one in self.loader.truncation.items():
            if one.captions:
                log.info(
                    f"{name}: {one.captions} of {one.samples} captions ({one.captions / one.samples:.1%}) were cut, "
                    f"{one.tokens} tokens in all"
                )
        process_group.barrier()


@contextlib.contextmanager
def prepared(config: TrainConfig) -> Iterator[Job]:
    """Build the job, and let go of loader processes, files and the process group at the end, whatever happens."""
    here = process_group.world_from_environment()
    device = get_device(config.parallel.device, here.local_rank if here.size > 1 else None)
    device.prepare_process()
    process_group.start(device, config.parallel.dist_backend)
    with contextlib.ExitStack() as stack:
        stack.callback(process_group.stop)
        job = _build(config, device, here)
        stack.callback(job.sinks.close)
        yield job


def _build(config: TrainConfig, device: Device, here: World) -> Job:
    if config.accum_freq < 1:
        raise ConfigError(f"--accum-freq {config.accum_freq}: expected at least 1.")
    checked_locks(config)
    torch.manual_seed(config.data.seed)
    device.seed(config.data.seed)
    model = weights.create(config.model.model, config.model.pretrained)
    objective = create_objective(config.objective, model)
    tokenizer = weights.tokenizer_of(model.config, config.model.pretrained)
    pipeline = build_pipeline(
        config.data,
        config.source,
        model.config,
        tokenizer,
        wants=objective.wants,
        validation_wants=Wants(images=("eval",)),
    )
    run = open_run(config, model.config.to_dict())
    if run.state:
        objective.load_state_dict(run.state["weights"])
    model.lock(config.model.lock_image, config.model.lock_text)
    if config.model.force_patch_dropout:
        if not hasattr(model.image, "patch_dropout"):
            raise ConfigError(
                f"--force-patch-dropout: {config.model.model} has no patches to leave out; it needs a ViT."
            )
        model.image.patch_dropout = config.model.force_patch_dropout  # type: ignore[assignment]
    wrapped = wrap(objective, device, here)
    if config.model.cache_features:
        pipeline = with_features(pipeline, model, device, here, _precision(config, device))
    model.checkpoint_activations(config.parallel.grad_checkpointing)
    optimizer = create_optimizer(wrapped, config.optimizer, device)
    step = Step(wrapped, optimizer, device, _precision(config, device), config.optimizer.grad_clip_norm)
    if run.state:
        step.restore(run.state["step_state"])
        torch.set_rng_state(run.state["random_state"]["cpu"])
        device.set_random_state(run.state["random_state"]["device"])
    if pipeline.val_source is not None:
        pipeline.validation_loader(here)  # so that what is wrong with it is said now
    start = Position(**run.state["position"]) if run.state else Position(0, 0)
    loader = pipeline.loader(start, here, device, config.accum_freq)
    per_epoch = max(1, loader.steps_per_epoch)
    total = total_steps(config.schedule, per_epoch)
    return Job(
        config, run, device, here, objective, step, pipeline, loader,
        Validator(config, pipeline, device, here, step.precision),
        log.open_sinks(run.folder, config.output.report_to, run.first_step if run.state else None),
        total, _due(config, per_epoch, total), BadSampleLog(run.folder, here.rank),
    )  # fmt: skip


def _precision(config: TrainConfig, device: Device) -> str:
    asked = config.parallel.precision
    if asked == "auto":
        return device.default_precision()
    if asked not in PRECISIONS:
        raise ConfigError("--precision: " + did_you_mean(asked, PRECISIONS, "precision"))
    return PRECISIONS[asked]


def _due(config: TrainConfig, per_epoch: int, total: int) -> EventSchedule:
    out, evaluate = config.output, config.evaluate

    def every(steps: int, epochs: int) -> Callable[[int], bool]:
        period = steps or epochs * per_epoch
        return lambda done: period > 0 and done % period == 0

    pairs, zeroshot = every(evaluate.val_every_steps, evaluate.val_frequency), every(0, evaluate.zeroshot_frequency)
    return EventSchedule(
        log=lambda done: done % max(1, out.log_every_n_steps) == 0 or done in (1, total),
        pairs=lambda done: pairs(done) or done == total,
        zeroshot=lambda done: zeroshot(done) or done == total,
        save=every(out.save_every_steps, out.save_frequency),
    )
