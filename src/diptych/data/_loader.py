"""Whole steps of batches in an exact order: the same for any number of ranks and loader processes, resumable anywhere.

Which records a step reads is ``_steps``'s; here loader processes read and prepare them, a micro-batch at a time, and what was
unusable or truncated is counted. A position is two numbers, and resuming is starting at it. One torch DataLoader serves the
whole run: its processes are not restarted between epochs.
"""

from __future__ import annotations

import collections
import functools
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from diptych.data._base import Source
from diptych.data._collate import collate
from diptych.data._order import draw
from diptych.data._prepare import Prepare
from diptych.data._steps import LoaderOptions, PlannedStep, Position, SampleRequest, plan_steps, records_at
from diptych.errors import ConfigError, DataError, RecordError, SourceError
from diptych.image import StrongTransform, compile_color_kernels, compile_kernels
from diptych.types import Batch, Sample

ATTEMPTS = 16  # records tried in place of a bad one before giving up
ENOUGH = 200  # samples seen before the share of bad ones means anything
PREFETCH = 4  # micro-batches that each loader process prepares ahead


class TruncationStats(NamedTuple):
    """Of one data set: samples read, how many of them had a caption that was too long, and the tokens that were lost."""

    samples: int = 0
    captions: int = 0
    tokens: int = 0

    def plus(self, other: TruncationStats) -> TruncationStats:
        """Both together."""
        return TruncationStats(self.samples + other.samples, self.captions + other.captions, self.tokens + other.tokens)


class Fetched(NamedTuple):
    """What a loader process sends back: a micro-batch, or the error that stops the run; bad records (key, reason) met on
    the way, the truncations of each data set, and (key, damage) of images that are damaged and were used."""

    batch: Batch | None
    error: DataError | None
    bad: list[tuple[str, str]]
    truncation: dict[str, TruncationStats]
    damaged: Sequence[tuple[str, str]] = ()


class Loader:
    """Prepared batches of one rank, a step at a time.

    ``bad`` lists (key, reason) of all unusable records met so far: each was replaced by another record, so the batch has its
    size, and every rank its step; a share above ``bad_limit`` of the samples seen raises SourceError. ``seen`` counts samples.
    ``damaged`` lists (key, what libjpeg warned of) of images that were used all the same.
    ``truncation`` counts truncated captions by data set (of joined ones "0/name", "1/name"; else the source's name).
    ``count`` is the number of positions of an epoch.
    """

    def __init__(self, source: Source, prepare: Prepare, options: LoaderOptions) -> None:
        self.source, self.prepare, self.options = source, prepare, options
        self.bad: list[tuple[str, str]] = []
        self.damaged: list[tuple[str, str]] = []
        self.seen = 0
        self.truncation: dict[str, TruncationStats] = {}
        self.count = options.mixture.count if options.mixture else len(source)
        if options.drop_last and not options.pad_last and self.count < options.step_size:
            raise SourceError(
                f"{source.name}: {self.count} records do not fill one step of {options.arithmetic}; lower --batch-size."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Steps in a whole epoch, equal on every rank."""
        return self.options.steps_per_epoch(self.count)

    def steps(self) -> Iterator[tuple[list[Batch], Position]]:
        """Yield the micro-batches of each step, and the position to resume at after it.

        Raises RecordError where a bad record stops the run, SourceError above the limit of bad samples.
        """
        others = multiprocessing.active_children()
        fetched = iter(self._data_loader())
        workers = [process for process in multiprocessing.active_children() if process not in others]
        at_exit = Finalize(None, _kill, args=(workers,), exitpriority=1)
        try:
            for step in self._plan():
                yield [self._received(next(fetched)) for _ in step.micro_batches], step.after
        finally:
            del fetched  # ends the loader processes now, also where an error's traceback holds this frame
            at_exit.cancel()

    def __iter__(self) -> Iterator[tuple[Batch, Position]]:
        """Yield each batch with the position after it. Raises ConfigError where a step has several micro-batches."""
        if self.options.micro_batches != 1:
            raise ConfigError(f"a step of {self.options.micro_batches} micro-batches is read with Loader.steps().")
        return ((batches[0], after) for batches, after in self.steps())

    def first_requests(self) -> list[SampleRequest]:
        """What this rank reads in its first step, in order; nothing where there is no step."""
        first = next(iter(self._plan()), None)
        return [request for batch in first.micro_batches for request in batch] if first else []

    def _plan(self) -> Iterator[PlannedStep]:
        return plan_steps(self.options, self.count)

    def _data_loader(self) -> DataLoader[Fetched]:
        options, fetch = self.options, _Fetch(self)
        _compile(fetch.images, fetch.colors)  # before the processes start, so that they inherit them
        return DataLoader(
            # A dataset by its ``__getitems__``, which torch's types do not know.
            cast("Dataset[Fetched]", fetch), batch_sampler=_MicroBatches(self), collate_fn=_only,
            num_workers=options.workers, pin_memory=options.pin_memory,
            prefetch_factor=PREFETCH if options.workers else None,
            worker_init_fn=functools.partial(_prepare_worker, fetch.images, fetch.colors),
            # Else torch would draw from the random state of the training, and a resumed run would draw once more.
            generator=torch.Generator().manual_seed(options.seed),
        )  # fmt: skip

    def _received(self, fetched: Fetched) -> Batch:
        self.bad += fetched.bad
        self.damaged += fetched.damaged
        if fetched.batch is None:
            raise fetched.error or DataError("a loader process sent neither a batch nor an error.")
        for source, stats in fetched.truncation.items():
            name = source or self.source.name
            self.truncation[name] = self.truncation.get(name, TruncationStats()).plus(stats)
        self.seen += len(fetched.batch.keys)
        if fetched.bad:
            self._stop_above_the_limit()
        return fetched.batch

    def _stop_above_the_limit(self) -> None:
        share = len(self.bad) / max(1, self.seen + len(self.bad))
        if self.seen + len(self.bad) < ENOUGH or share <= self.options.bad_limit:
            return
        worst = collections.Counter(reason.partition("(")[0].strip() for _, reason in self.bad).most_common(3)
        reasons = "; ".join(f"{count} x {reason}" for reason, count in worst)
        raise SourceError(
            f"{self.source.name}: {len(self.bad)} of {self.seen + len(self.bad)} records were bad, more than --bad-samples-max "
            f"{self.options.bad_limit:.2%}: {reasons}; the first was {self.bad[0][0]}. Inspect with: diptych data check."
        )


class _MicroBatches:
    """The batch sampler: what each fetch is asked for."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[SampleRequest]]:
        for step in self._loader._plan():
            yield from step.micro_batches


def _only(fetched: list[Fetched]) -> Fetched:
    return fetched[0]


def _kill(workers: list[BaseProcess]) -> None:
    """End loader processes that a leaving program still reads from: they ignore SIGTERM, and Python would wait for them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch takes a killed loader process for a crash
    for process in workers:
        process.kill()


def _compile(images: int | None, colors: bool) -> None:
    """Use compiled kernels where so many images repay them; those of colors where a view needs them."""
    compile_kernels(images)
    if colors:
        compile_color_kernels(images)


def _prepare_worker(images: int | None, colors: bool, worker: int) -> None:
    # Ctrl-C, and what clusters send to every process (SIGTERM, SIGUSR1), are for the main process, which saves and then ends its
    # workers; a worker whose parent has gone leaves by itself. torch must not start threads beside them.
    for number in (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    _compile(images, colors)  # where processes are not forked, they inherit nothing


class _Fetch:
    """What a loader process does: requested samples -> one Fetched."""

    def __init__(self, loader: Loader) -> None:
        self.source, self.prepare, self.options, self.count = (
            loader.source,
            loader.prepare,
            loader.options,
            loader.count,
        )
        epochs = loader.options.epochs
        self.images = None if epochs is None else loader.count * epochs
        self.colors = any(isinstance(view, StrongTransform) for view, _ in loader.prepare.image_views)

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, requests: list[SampleRequest]) -> list[Fetched]:
        bad: list[tuple[str, str]] = []
        try:
            samples = [self._sample(request, bad) for request in requests]
            batch = collate(samples, requests[0].epoch, self.prepare.tokenizer.pad_id, self.options.text_layout)
        except DataError as error:
            # Sent as a value: raised in a worker, torch would bury it in a traceback.
            return [Fetched(None, error, bad, {})]
        damaged = [(sample.key, sample.damage) for sample in samples if sample.damage]
        return [Fetched(batch, None, bad, _truncation(samples), damaged)]

    def _sample(self, request: SampleRequest, bad: list[tuple[str, str]]) -> Sample:
        record = request.record
        for attempt in range(1, ATTEMPTS + 1):
            try:
                # A replacement keeps the seed of the bad record: its views differ from those of its own turn in the epoch.
                return self.prepare(self.source.record(record), request.seed, record)
            except RecordError as error:
                if self.options.bad_samples == "raise":
                    raise
                bad.append((error.key, error.reason))
                record = self._replacement(request, attempt)
        raise SourceError(
            f"{self.source.name}: {ATTEMPTS} records in a row were bad, the last one {bad[-1][0]}: {bad[-1][1]}."
        )

    def _replacement(self, request: SampleRequest, attempt: int) -> int:
        """The record that replaces a bad one: the same on every machine, whatever the ranks and workers."""
        options = self.options
        if options.bad_samples == "replace" or options.mixture is not None:
            return draw(request.seed, attempt) % len(self.source)
        following = np.array([(request.position + attempt) % self.count])
        return int(records_at(options, following, self.count, request.epoch)[0])


def _truncation(samples: list[Sample]) -> dict[str, TruncationStats]:
    stats: dict[str, TruncationStats] = {}
    for sample in samples:
        own = TruncationStats(1, int(sample.num_truncated > 0), sample.num_truncated)
        stats[sample.source] = stats.get(sample.source, TruncationStats()).plus(own)
    return stats
