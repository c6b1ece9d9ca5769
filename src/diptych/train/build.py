"""From the config to a training job: devices, model, objective, layout, data, optimizer, and what a resumed run brings.

The only reader of the whole config tree: every piece gets the branch that it needs. Builds, and trains nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch

from diptych import config as options
from diptych import log, weights
from diptych.data import Position
from diptych.devices import Device, get_device
from diptych.distributed import process_group
from diptych.distributed.layout import PRECISIONS, Layout, frozen_digests
from diptych.distributed.process_group import World
from diptych.errors import ConfigError
from diptych.evaluate import Encoder
from diptych.models import ModelConfig, TwoTower
from diptych.objectives import OBJECTIVES, create_objective
from diptych.registry import did_you_mean
from diptych.train.bad_samples import BadSampleLog
from diptych.train.changes import ModelChange, changes_of
from diptych.train.config import EvaluateOptions, OutputOptions, TrainConfig, saved_values
from diptych.train.job import EventSchedule, Job, LearningRate
from diptych.train.locked_features import with_features
from diptych.train.pipeline import Pipeline, build_pipeline
from diptych.train.run_folder import Run, open_run
from diptych.train.schedule import total_steps
from diptych.train.step import Step, create_step
from diptych.train.validate import ValidationData, Validator


@contextlib.contextmanager
def prepared(config: TrainConfig) -> Iterator[Job]:
    """Build the job, and release loader processes, files and the process group at the end, whatever happens."""
    world = process_group.world_from_environment()
    device = get_device(config.parallel.device, world.local_rank if world.size > 1 else None)
    config = _with_matmul(config, device)
    if config.parallel.deterministic:
        device.set_deterministic()
    process_group.start(device, config.parallel.dist_backend)
    with contextlib.ExitStack() as stack:
        stack.callback(process_group.stop)
        job = _build(config, device, world)
        stack.callback(job.sinks.close)
        yield job


def _with_matmul(config: TrainConfig, device: Device) -> TrainConfig:
    """Prepare the process; the config says which library computes fp32 products, of a resumed run the same as before."""
    asked = config.parallel.matmul
    saved = saved_values(config.output.resume, config.output.output)[0].get("parallel", {}).get("matmul", "auto")
    if asked == "auto":
        asked = saved
    elif saved not in ("auto", asked):
        log.warn(f"--matmul {asked}: the run was trained with {saved} so far; from here on it is not bit-identical.")
    choice = device.prepare_process(asked)
    return dataclasses.replace(config, parallel=dataclasses.replace(config.parallel, matmul=choice))


def _build(config: TrainConfig, device: Device, world: World) -> Job:
    torch.manual_seed(config.data.seed)
    device.seed(config.data.seed)
    precision = _precision(config.parallel.precision, device)
    architecture, pretrained = weights.choose(config.model.model, config.model.pretrained)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=pretrained))
    changes = changes_of(config.model, resumed=bool(config.output.resume))
    model = _model(config, architecture, changes)
    objective = create_objective(config.objective, model, weights.load)
    tokenizer = weights.tokenizer_of(model.config, config.model.pretrained)
    pipeline = build_pipeline(
        config.data, config.source, model.config, tokenizer, wants=objective.wants,
        validation_wants=objective.validation_wants,
    )  # fmt: skip
    run = open_run(config, model.config.to_dict(), frozen_digests(objective.frozen()))
    if world.main:
        weights.save_vocabulary(model.config, config.model.pretrained, run.folder)
    step = create_step(objective, config.optimizer, device, precision, world)
    layout = step.layout
    if run.state:
        _restore(step, run, device)
    if config.model.cache_features:
        encoder = Encoder(
            layout, tokenizer, pipeline.eval_transform, device, max(64, config.data.batch_size), config.data.workers,
            precision, shared=world.size > 1,
        )  # fmt: skip
        source = with_features(pipeline.train_source, encoder, objective.wants)
        pipeline = dataclasses.replace(pipeline, train_source=source)
    start = Position(**run.state["position"]) if run.state else Position(0, 0)
    loader = pipeline.loader(start, world, device, config.accum_freq)
    per_epoch = max(1, loader.steps_per_epoch)
    total = total_steps(config.schedule, per_epoch)
    return Job(
        run, world, step, changes, loader, _validator(config, pipeline, layout, step),
        log.open_sinks(run.folder, config.output.report_to, run.first_step if run.state else None),
        LearningRate(config.schedule, config.optimizer.lr, total), _events(config.output, config.evaluate, per_epoch, total),
        BadSampleLog(run.folder, world.rank), config.output.keep_checkpoints, options.to_dict(config),
    )  # fmt: skip


def _model(config: TrainConfig, architecture: ModelConfig, changes: tuple[ModelChange, ...]) -> TwoTower:
    """The model as changes and the objective need it, with random weights or those of --pretrained."""
    for change in changes:
        architecture = change.before_weights(architecture, config.model)
    needs = OBJECTIVES.get(config.objective.objective).model_needs(config.objective)
    model = weights.create(architecture, config.model.pretrained, needs)
    for change in changes:
        change.after_weights(model, config.model)
    return model


def _restore(step: Step, run: Run, device: Device) -> None:
    assert run.state is not None
    step.layout.load_full_state(run.state["weights"])
    step.restore(run.state["step_state"])
    torch.set_rng_state(run.state["random_state"]["cpu"])
    device.set_random_state(run.state["random_state"]["device"])


def _validator(config: TrainConfig, pipeline: Pipeline, layout: Layout, step: Step) -> Validator:
    if pipeline.val_source is not None:
        pipeline.validation_loader(layout.world)  # so that what is wrong with it is said now
    encoder = Encoder(
        layout, pipeline.tokenizer, pipeline.eval_transform, step.device, min(64, config.data.batch_size),
        min(1, config.data.workers), step.precision, shared=layout.world.size > 1, cache=False,
    )  # fmt: skip
    data = ValidationData(
        pipeline.val_source, pipeline.labeled_source, lambda: pipeline.validation_loader(layout.world)
    )
    return Validator(layout, encoder, data, config.evaluate)


def _precision(asked: str, device: Device) -> str:
    if asked == "auto":
        return device.default_precision()
    if asked not in PRECISIONS:
        raise ConfigError("--precision: " + did_you_mean(asked, PRECISIONS, "precision"))
    return PRECISIONS[asked]


def _events(output: OutputOptions, evaluate: EvaluateOptions, per_epoch: int, total: int) -> EventSchedule:
    def every(steps: int, epochs: int) -> Callable[[int], bool]:
        period = steps or epochs * per_epoch
        return lambda done: period > 0 and done % period == 0

    pairs, labeled = every(evaluate.val_every_steps, evaluate.val_frequency), every(0, evaluate.zeroshot_frequency)
    return EventSchedule(
        log=lambda done: done % max(1, output.log_every_n_steps) == 0 or done in (1, total),
        pairs=lambda done: pairs(done) or done == total,
        labeled=lambda done: labeled(done) or done == total,
        save=every(output.save_every_steps, output.save_frequency),
    )
