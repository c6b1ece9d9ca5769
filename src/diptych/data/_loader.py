"""Batches in an order that is exact: the same for any number of ranks and loader processes, and resumable anywhere.

Global batch k of an epoch is the records at places k*G to (k+1)*G - 1 of the epoch's permutation, G = batch size x ranks;
rank r takes its r-th slice. Each sample's chance is seeded by (seed, epoch, place). A position is therefore two numbers, and
resuming is starting there. One torch DataLoader serves the whole run: its processes are not restarted between epochs.
"""

from __future__ import annotations

import collections
import functools
import operator
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from diptych.data._collate import collate
from diptych.data._order import Mixture, draw, permute
from diptych.data._prepare import Prepare
from diptych.errors import ConfigError, DataError, RecordError, SourceError
from diptych.image import compile_kernels
from diptych.types import Batch, Sample

if TYPE_CHECKING:
    from diptych.data import Source

ATTEMPTS = 16  # records tried in place of a bad one before giving up
ENOUGH = 200  # samples seen before the share of bad ones means anything
Policy = Literal["skip", "replace", "raise"]


@dataclass(frozen=True)
class Position:
    """The next record to read: ``index`` counts records of the epoch that all ranks together have consumed."""

    epoch: int
    index: int


BEGINNING = Position(0, 0)


class Place(NamedTuple):
    """One record to prepare: where it stands in its epoch, and which record that is."""

    epoch: int
    place: int
    record: int


class Cuts(NamedTuple):
    """Of one data set: samples read, how many of them had a caption that was too long, and the tokens that were lost."""

    samples: int = 0
    captions: int = 0
    tokens: int = 0


class Fetched(NamedTuple):
    """What a loader process sends back: a batch, or the error that stops the run; and bad records and cuts on the way."""

    batch: Batch | None
    error: DataError | None
    bad: list[tuple[str, str]]
    cuts: dict[str, Cuts]


class Loader:
    """Iterate ``(Batch, Position)``: a batch of this rank, and where to resume after it.

    ``epochs`` None goes on for ever. The last batch of an epoch that is not full is left out, kept (``drop_last`` False, one
    rank only) or filled up from the epoch's beginning (``pad_last``). ``mixture`` draws records by weight, with replacement.
    An unusable record stops the run ("raise"), or the next one of the epoch's order stands in ("skip"), or one drawn at random
    ("replace"): the batch keeps its size, and every rank its step. ``bad`` lists (key, reason) of all met so far; above the share
    ``bad_limit`` of the samples seen it stops with a SourceError. ``cuts`` counts truncations by data set
    (joined ones as "0/name", "1/name"; else all under the source's name).
    """

    def __init__(
        self,
        source: Source,
        prepare: Prepare,
        *,
        batch_size: int,
        workers: int = 0,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        start: Position = BEGINNING,
        shuffle: bool = True,
        drop_last: bool = True,
        epochs: int | None = None,
        pin_memory: bool = False,
        bad_samples: Policy = "raise",
        bad_limit: float = 1.0,
        pad_last: bool = False,
        mixture: Mixture | None = None,
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise ConfigError(f"--batch-size {batch_size} --workers {workers}: expected at least 1 and at least 0.")
        if not drop_last and ranks > 1:
            raise ConfigError(
                "the last partial batch can only be kept with one process, since ranks must stay in step."
            )
        self.source, self.prepare, self.seed, self.shuffle = source, prepare, seed, shuffle
        self.batch_size, self.rank, self.global_batch = batch_size, rank, batch_size * ranks
        self.workers, self.pin_memory, self.bad_samples = workers, pin_memory, bad_samples
        self.start, self.drop_last, self.epochs = start, drop_last, epochs
        self.bad_limit, self.pad_last, self.mixture = bad_limit, pad_last, mixture
        self.bad: list[tuple[str, str]] = []
        self.seen, self.cuts = 0, dict[str, Cuts]()
        self.count = mixture.count if mixture else len(source)
        if drop_last and not pad_last and self.count < self.global_batch:
            raise SourceError(
                f"{source.name}: {self.count} records do not fill one batch of {self.global_batch}; lower --batch-size."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches in a whole epoch, the same on every rank."""
        whole, rest = divmod(self.count, self.global_batch)
        return whole + (1 if rest and (self.pad_last or not self.drop_last) else 0)

    def _plan(self) -> Iterator[tuple[list[Place], Position]]:
        """For every coming batch of this rank: what to prepare, and the position after it."""
        epoch, index = self.start.epoch, self.start.index
        # A started batch must fit before the end of the epoch, or at least begin there.
        needed = self.global_batch if self.drop_last and not self.pad_last else 1
        while self.epochs is None or epoch < self.epochs:
            while index + needed <= self.count:
                first = index + self.rank * self.batch_size
                places = np.arange(first, first + self.batch_size)
                places = places % self.count if self.pad_last else places[places < self.count]
                index += self.global_batch
                after = Position(epoch, index) if index + needed <= self.count else Position(epoch + 1, 0)
                yield (
                    [
                        Place(epoch, int(place), int(one))
                        for place, one in zip(places, self._records(places, epoch), strict=True)
                    ],
                    after,
                )
            epoch, index = epoch + 1, 0

    def _records(self, places: np.ndarray, epoch: int) -> np.ndarray:
        """Which records stand at some places of an epoch."""
        if self.mixture is not None:
            return self.mixture.records(places, self.seed, epoch)
        return permute(places, self.count, self.seed, epoch) if self.shuffle else places

    def __iter__(self) -> Iterator[tuple[Batch, Position]]:
        fetch: Any = _Fetch(self)
        compile_kernels(fetch.pictures)  # before the processes start, so that they inherit them
        loader: DataLoader[Fetched] = DataLoader(
            fetch, batch_sampler=_Places(self), collate_fn=operator.itemgetter(0), num_workers=self.workers,
            pin_memory=self.pin_memory, prefetch_factor=4 if self.workers else None,
            worker_init_fn=functools.partial(_quiet_worker, fetch.pictures),
            # Else torch would draw from the random state of the training, and a resumed run would draw once more.
            generator=torch.Generator().manual_seed(self.seed),
        )  # fmt: skip
        for (_, position), fetched in zip(self._plan(), loader, strict=False):
            self.bad += fetched.bad
            if fetched.batch is None:
                raise fetched.error or DataError("a loader process sent neither a batch nor an error.")
            for name, found in fetched.cuts.items():
                before = self.cuts.get(name or self.source.name, Cuts())
                self.cuts[name or self.source.name] = Cuts(*map(operator.add, before, found))
            self.seen += len(fetched.batch.keys)
            if fetched.bad:
                self._stop_above_the_limit()
            yield fetched.batch, position

    def _stop_above_the_limit(self) -> None:
        share = len(self.bad) / max(1, self.seen + len(self.bad))
        if self.seen + len(self.bad) < ENOUGH or share <= self.bad_limit:
            return
        worst = collections.Counter(reason.partition("(")[0].strip() for _, reason in self.bad).most_common(3)
        told = "; ".join(f"{count} x {reason}" for reason, count in worst)
        raise SourceError(
            f"{self.source.name}: {len(self.bad)} of {self.seen + len(self.bad)} records were bad, more than --bad-samples-max "
            f"{self.bad_limit:.2%}: {told}; the first was {self.bad[0][0]}. Look with: diptych data check."
        )


class _Places:
    """The batch sampler: what each fetch is asked for."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[list[Place]]:
        for places, _ in self._loader._plan():
            yield places


def _quiet_worker(pictures: int | None, worker: int) -> None:
    # Ctrl-C, and the SIGTERM that clusters send to every process, are for the main process, which saves and then ends its
    # workers; a worker whose parent has gone leaves by itself. torch must not start threads beside them.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    compile_kernels(pictures)  # where processes are not forked, they inherit nothing


class _Fetch:
    """What a loader process does: places -> one Fetched."""

    def __init__(self, loader: Loader) -> None:
        self.source, self.prepare, self.seed = loader.source, loader.prepare, loader.seed
        self.policy, self.count, self.shuffle, self.mixed = (
            loader.bad_samples,
            loader.count,
            loader.shuffle,
            bool(loader.mixture),
        )
        self.pictures = None if loader.epochs is None else loader.count * loader.epochs

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, places: list[Place]) -> list[Fetched]:
        bad: list[tuple[str, str]] = []
        try:
            samples = [self._sample(place, bad) for place in places]
        except DataError as error:
            # Sent as a value: raised in a worker, torch would bury it in a traceback.
            return [Fetched(None, error, bad, {})]
        return [Fetched(collate(samples)._replace(epoch=places[0].epoch), None, bad, _cuts(samples))]

    def _sample(self, place: Place, bad: list[tuple[str, str]]) -> Sample:
        seed = draw(self.seed, place.epoch, place.place)
        record = place.record
        for attempt in range(ATTEMPTS):
            try:
                return self.prepare(self.source.record(record), seed, record)
            except RecordError as error:
                if self.policy == "raise":
                    raise
                bad.append((error.key, error.reason))
                record = self._instead(place, attempt + 1, seed)
        raise SourceError(
            f"{self.source.name}: {ATTEMPTS} records in a row were bad, the last one {bad[-1][0]}: {bad[-1][1]}."
        )

    def _instead(self, place: Place, attempt: int, seed: int) -> int:
        """Who stands in for a bad record: the same on every machine, whatever the ranks and workers."""
        if self.policy == "replace" or self.mixed:
            return draw(seed, attempt) % len(self.source)
        after = np.array([(place.place + attempt) % self.count])
        return int(permute(after, self.count, self.seed, place.epoch)[0] if self.shuffle else after[0])


def _cuts(samples: list[Sample]) -> dict[str, Cuts]:
    found: dict[str, Cuts] = {}
    for sample in samples:
        one = (1, int(sample.num_truncated > 0), sample.num_truncated)
        found[sample.source] = Cuts(*map(operator.add, found.get(sample.source, Cuts()), one))
    return found
