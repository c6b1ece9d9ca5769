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
from diptych.data import ORDER_VERSION, START, Loader, Position, fingerprint
from diptych.devices import Device, get_device
from diptych.distributed import mesh, process_group, watch
from diptych.distributed.agreement import Agreement
from diptych.distributed.layout import Layout, frozen_digests
from diptych.distributed.precisions import precision_of
from diptych.distributed.process_group import World
from diptych.distributed.saving import CheckpointWriter, SaveOptions
from diptych.errors import ConfigError
from diptych.evaluate import Encoder, check_usable, use_labeled
from diptych.image import EvalTransform
from diptych.models import ModelConfig, TwoTower
from diptych.objectives import OBJECTIVES, RunFacts, create_objective
from diptych.train.bad_samples import BadSampleLog
from diptych.train.changes import ModelChange, changes_of
from diptych.train.config import EvaluateOptions, OutputOptions, TrainConfig, saved_values
from diptych.train.contact_sheet import write_contact_sheet
from diptych.train.first_checks import check_learning, check_other_captions, check_step_size, check_variety
from diptych.train.job import EventSchedule, Job, LearningRate
from diptych.train.locked_features import check_cacheable, stored_features, with_features
from diptych.train.micro_batch import with_micro_batch
from diptych.train.nonfinite import SkippedSteps, allowed_skips
from diptych.train.optimizer import check_options
from diptych.train.pipeline import Pipeline, build_pipeline
from diptych.train.run_folder import Identity, Run, open_run
from diptych.train.schedule import cooldown_steps, total_steps
from diptych.train.step import Step, create_step
from diptych.train.text_layout import with_text_layout
from diptych.train.validate import ValidationData, Validator
from diptych.train.view_options import training_wants

AFTER_WATCH = 15.0  # seconds after the watch, which names the process, that exchanges give up by themselves


@contextlib.contextmanager
def prepared(config: TrainConfig) -> Iterator[Job]:
    """Build the job, and release loader processes, files and the process group at the end, whatever happens."""
    world = process_group.world_from_environment()
    device = get_device(config.parallel.device, world.local_rank if world.size > 1 else None)
    config = _with_matmul(config, device)
    if config.parallel.deterministic:
        device.set_deterministic()
    limit = config.parallel.dist_timeout
    process_group.start(device, config.parallel.dist_backend, limit + AFTER_WATCH)
    with contextlib.ExitStack() as stack:
        stack.callback(process_group.stop)
        stack.enter_context(process_group.naming_lost_peers())
        stack.enter_context(watch.watching(world, limit))
        job = _build(config, device, world)
        stack.callback(job.sinks.close)
        stack.callback(job.checkpoints.close)
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
    allowed = allowed_skips(config.optimizer.on_nonfinite)
    check_options(config.optimizer)
    _check_compiled(config)
    architecture, pretrained = weights.choose(config.model.model, config.model.pretrained)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=pretrained))
    changes = changes_of(config.model, resumed=bool(config.output.resume))
    model = _model(config, architecture, changes)
    objective = create_objective(config.objective, model, weights.load)
    tokenizer = weights.tokenizer_of(model.config, config.model.pretrained)
    pipeline = build_pipeline(
        config.data, config.source, model.config, tokenizer, views=config.views,
        wants=training_wants(objective.wants, config.views, config.objective.objective),
        validation_wants=objective.validation_wants,
    )  # fmt: skip
    data_world = mesh.data_world(config.parallel, world)
    _check_data(pipeline, data_world, device)
    config = with_micro_batch(config, objective, device, precision, world)
    config, pipeline = with_text_layout(config, pipeline, model.config.text, device, precision)
    planned = pipeline.loader(START, data_world, device, config.pieces)
    per_epoch = _steps_per_epoch(config, planned)
    total = total_steps(config.schedule, per_epoch)
    epochs = total / max(1, planned.steps_per_epoch)
    pairs = config.data.batch_size * config.accum_freq
    records = len(pipeline.train_source)
    objective.begin_run(RunFacts(records, epochs, config.data.dataset_resampled, pairs, data_world.size))
    sizes = {"processes": world.size, "step_size": pairs * data_world.size}
    data = {**fingerprint(pipeline.train_source), "order": ORDER_VERSION, **sizes}
    identity = Identity(model.config.to_dict(), frozen_digests(objective.frozen()), data)
    step = create_step(objective, config.optimizer, device, precision, world, parallel=config.parallel)
    rate = LearningRate(config.schedule, config.optimizer.lr, total, cooldown_steps(config.schedule, per_epoch, total))
    check_learning(step, rate)
    check_step_size(planned.options, planned.count, objective.min_pairs)
    run = open_run(config, identity)
    watch.stacks_into(run.folder)
    if run.state is None and config.output.resume:  # a new run after all: nothing is trained already
        changes_of(config.model, resumed=False)
    if world.main:
        _write_first_files(run, config, model.config, planned, pipeline)
    if run.state:
        _restore(step, run, device)
    pipeline = _with_features(config, pipeline, step)
    skipped = SkippedSteps(run.folder, allowed, run.state.get("skipped_steps", 0) if run.state else 0)
    start = Position(**run.state["position"]) if run.state else Position(0, 0)
    if step.gate is not None:
        step.gate.limit(allowed - skipped.count)
    loader = pipeline.loader(start, data_world, device, config.pieces)
    return Job(
        run, world, step, changes, loader, _validator(config, pipeline, step.layout, step),
        log.open_sinks(run.folder, config.output.report_to, run.first_step if run.state else None),
        rate, _events(config.output, config.evaluate, per_epoch, total),
        BadSampleLog(run.folder, world.rank), skipped, _checkpoint_writer(config, run, world),
        Agreement(config.parallel.dist_timeout + AFTER_WATCH), options.to_dict(config), identity,
    )  # fmt: skip


def _checkpoint_writer(config: TrainConfig, run: Run, world: World) -> CheckpointWriter:
    output, parallel = config.output, config.parallel
    kind = output.checkpoint_kind
    if kind == "auto":
        split = parallel.sharding != "none" or parallel.tensor_parallel_degree > 1
        kind = "folder" if split else "file"
    chosen = SaveOptions(kind, output.async_save, output.on_save_error, output.keep_checkpoints)
    return CheckpointWriter(run.checkpoints, world, chosen, parallel.dist_timeout)


def _write_first_files(run: Run, config: TrainConfig, model: ModelConfig, planned: Loader, pipeline: Pipeline) -> None:
    """What stands in a run's folder before its first step, beside its config: a vocabulary of its own, the sheet of its views."""
    weights.save_vocabulary(model, config.model.pretrained, run.folder)
    if run.state is None and not config.model.cache_features:
        write_contact_sheet(run.folder, planned, pipeline.wants)


def _with_features(config: TrainConfig, pipeline: Pipeline, step: Step) -> Pipeline:
    """The pipeline with what is computed of all images before the first step: by a locked tower, or by a teacher."""
    layout, objective = step.layout, step.layout.objective

    def encoder(model: TwoTower | Layout, transform: EvalTransform, shared: bool) -> Encoder:
        size, workers = max(64, config.data.batch_size), config.data.workers
        return Encoder(model, pipeline.tokenizer, transform, step.device, size, workers, step.precision, shared=shared)

    companion = objective.stored_companion()
    if companion is not None:
        log.info("the teacher sees each image once, as in evaluation, and not the crop of the student")
        transform = weights.eval_transform(companion.config)
        own = encoder(companion, transform, shared=layout.world.size > 1)
        objective.store(stored_features(pipeline.train_source, own))
    if config.model.cache_features:
        check_cacheable(objective)
        own = encoder(layout, pipeline.eval_transform, shared=layout.size > 1)
        source = with_features(pipeline.train_source, own, pipeline.wants)
        pipeline = dataclasses.replace(pipeline, train_source=source)
    return pipeline


def _check_data(pipeline: Pipeline, world: World, device: Device) -> None:
    """Decode a record of every source, and see that there is something to learn. Raises DataError, ConfigError."""
    prepare = pipeline.loader(START, world, device).prepare
    if "another" in pipeline.wants.texts:
        check_other_captions(pipeline.train_source, prepare.choice, pipeline.data.bad_samples_max)
    check_usable(pipeline.train_source, "--train-data", lambda record, index: prepare(record, 0, index))
    check_variety(pipeline.train_source)
    if pipeline.val_source is not None:
        held_out = pipeline.validation_loader(world).prepare
        check_usable(pipeline.val_source, "--val-data", lambda record, index: held_out(record, 0, index))
    labeled = {"--imagenet-val": pipeline.labeled_source, "--imagenet-v2": pipeline.labeled_v2_source}
    for flag, source in labeled.items():
        if source is not None:
            check_usable(source, flag, use_labeled)


def _steps_per_epoch(config: TrainConfig, loader: Loader) -> int:
    """What --epochs and the frequencies count in; --train-num-samples sets it, and the order of the data stays what it is."""
    samples = config.data.train_num_samples
    if not samples or config.data.dataset_resampled:
        return max(1, loader.steps_per_epoch)
    steps = samples // loader.options.step_size
    if steps < 1:
        raise ConfigError(
            f"--train-num-samples {samples} is less than a step of {loader.options.arithmetic}; raise it."
        )
    log.info(
        f"--train-num-samples {samples:,}: --epochs and the frequencies count {steps} steps each; the {loader.count:,} records "
        "are still read in whole passes"
    )
    return steps


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
        pipeline.validation_loader(layout.data_world)  # so that what is wrong with it is said now
    encoder = Encoder(
        layout, pipeline.tokenizer, pipeline.eval_transform, step.device, min(64, config.data.batch_size),
        min(1, config.data.workers), step.precision, shared=layout.size > 1, cache=False,
        bad_samples="raise" if config.data.bad_samples == "raise" else "skip", bad_limit=config.data.bad_samples_max,
        strict=config.data.bad_samples_strict, text_layout=pipeline.text_layout,
    )  # fmt: skip
    data = ValidationData(
        pipeline.val_source, pipeline.labeled_source, lambda: pipeline.validation_loader(layout.data_world, step.device),
        pipeline.labeled_v2_source,
    )  # fmt: skip
    return Validator(layout, encoder, data, config.evaluate, step.average)


def _check_compiled(config: TrainConfig) -> None:
    """Raise ConfigError where blocks cannot be compiled."""
    if config.model.torchcompile and config.parallel.tensor_parallel_degree > 1:
        raise ConfigError(
            "--torchcompile cannot record layers that are split (--tensor-parallel-degree); leave one of them out, or take "
            "--sharding, which goes with it."
        )


def _precision(asked: str, device: Device) -> str:
    return device.default_precision() if asked == "auto" else precision_of(asked)


def _events(output: OutputOptions, evaluate: EvaluateOptions, per_epoch: int, total: int) -> EventSchedule:
    def every(steps: int, epochs: int) -> Callable[[int], bool]:
        period = steps or epochs * per_epoch
        return lambda done: period > 0 and done % period == 0

    pairs, labeled = every(evaluate.val_every_steps, evaluate.val_frequency), every(0, evaluate.zeroshot_frequency)
    saved = every(output.save_every_steps, output.save_frequency)
    return EventSchedule(
        log=lambda done: done % max(1, output.log_every_n_steps) == 0 or done in (1, total),
        pairs=lambda done: pairs(done) or done == total,
        labeled=lambda done: labeled(done) or done == total,
        save=lambda done: saved(done) or (output.save_most_recent and done % per_epoch == 0),
    )
