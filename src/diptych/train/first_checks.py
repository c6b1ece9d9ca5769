"""What is looked at before the first step, so that a run that cannot come to anything ends before it costs a night.

The data holds something to distinguish; a step has pairs to compare; something is trained, at a rate above zero. That every
source gives a record that can be decoded is ``check_usable``. The table of errors and warnings is in docs/runs.md. Nothing is
changed here.
"""

from __future__ import annotations

from diptych import log
from diptych.data import CaptionChoice, LoaderOptions, Source, image_id, spread
from diptych.errors import ConfigError, DataError, SourceError
from diptych.evaluate import TRIED
from diptych.train.job import LearningRate
from diptych.train.schedule import warmup_steps
from diptych.train.step import Step
from diptych.types import Record

COMPARED = 256  # records that are compared where the first TRIED are alike


def check_variety(source: Source) -> None:
    """Raise SourceError when all records show one picture or have one caption; warn where that is so of all that were read."""
    for number in (TRIED, COMPARED):
        records = _readable(source, spread(len(source), number))
        images = {image_id(record) for record in records}
        captions = {caption.strip() for record in records for caption in record.captions}
        if len(records) < 2 or min(len(images), len(captions)) != 1:
            return
    what = "show the same image" if len(images) == 1 else f"have the same caption {next(iter(captions))[:60]!r}"
    if len(records) == len(source):
        raise SourceError(
            f"{source.name}: all {len(source)} records {what}, so there is nothing to distinguish; check the columns."
        )
    log.warn(f"{source.name}: {len(records)} of {len(source):,} records were looked at, and all {what}")


def check_other_captions(source: Source, choice: CaptionChoice, limit: float) -> None:
    """For an objective that wants a second caption of each image: raise ConfigError where too many records have a single one.

    A few are bad samples, so ``limit`` is their share as ``--bad-samples-max`` has it, of the records that are looked at.
    """
    records = _readable(source, spread(len(source), COMPARED))
    single = [record.key for record in records if choice.distinct(record) < 2]
    if len(single) > limit * len(records):
        raise ConfigError(
            f"{source.name}: {len(single)} of {len(records)} records looked at have a single caption (the first: {single[0]}), "
            "and the objective wants another of the same image; give data with several captions a record, and no --captions all."
        )


def _readable(source: Source, indices: list[int]) -> list[Record]:
    records = []
    for index in indices:
        try:
            records.append(source.record(index))
        except DataError:  # met again, and counted, in training
            continue
    return records


def check_step_size(options: LoaderOptions, count: int, needs: int) -> None:
    """Raise ConfigError when a step compares fewer pairs than the objective ``needs``; warn where it holds records twice."""
    if options.step_size < needs:
        raise ConfigError(
            f"a step compares {options.arithmetic}, and the loss needs {needs} to distinguish: it would be 0 at once; "
            "raise --batch-size."
        )
    if options.pad_last and count < options.step_size:
        log.warn(
            f"a step of {options.arithmetic} holds each of the {count} records more than once; lower --batch-size."
        )


def check_learning(step: Step, rate: LearningRate) -> None:
    """Raise ConfigError when nothing is trained or no rate is above 0; warn of a warm-up that the run does not finish."""
    scalars = {"logit_scale", "logit_bias"}
    trained = [name for name, _ in step.layout.trainable() if name.rpartition(".")[2] not in scalars]
    if not trained:
        raise ConfigError(
            "everything but the scale is locked, so nothing is learned; leave out --lock-image or --lock-text."
        )
    if all(group["peak_lr"] == 0 for group in step.optimizer.param_groups):
        raise ConfigError("--lr 0: the learning rate never leaves 0, so nothing is learned; give a rate above 0.")
    warm = warmup_steps(rate.options, rate.total_steps)
    if warm > rate.total_steps:
        reached = rate.at(rate.total_steps - 1)
        log.warn(
            f"--warmup {warm} is longer than the run of {rate.total_steps} steps: the rate ends at {reached:.2g} and never "
            f"reaches --lr {rate.peak:g}"
        )
