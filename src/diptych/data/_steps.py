"""Which records each optimizer step reads, as a pure function of the options and a position: no record is read here.

A step is a contiguous run of batch_size x micro_batches x ranks positions of an epoch's order. Each rank takes one contiguous
slice of it and splits that into consecutive micro-batches, so the rows of a step, rank after rank and micro-batch after
micro-batch, are in the order of the epoch whatever the numbers of ranks and micro-batches. A step never straddles epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from diptych.data._order import Mixture, draw, permute
from diptych.errors import ConfigError
from diptych.text import TextLayout

BadSamplePolicy = Literal["skip", "replace", "raise"]


@dataclass(frozen=True)
class Position:
    """The next record to read: ``index`` counts records of the epoch that all ranks together have consumed."""

    epoch: int
    index: int


START = Position(0, 0)


@dataclass(frozen=True)
class LoaderOptions:
    """How records become batches.

    ``batch_size`` pairs per micro-batch and rank; ``micro_batches`` of them per step and rank; ``rank`` of ``ranks``;
    ``workers`` loader processes; ``start`` where to read on. ``epochs`` None never ends. The last step of an epoch that is not
    full is dropped, or shortened (``drop_last`` False, a single rank only), or filled from the epoch's beginning (``pad_last``).
    ``mixture`` draws records by weight, with replacement. An unusable record stops the run ("raise"), or the next of the
    epoch's order replaces it ("skip"), or a random one ("replace"); a share of bad samples above ``bad_limit`` stops the run.
    ``text_layout`` plans the texts of each batch.
    Raises ConfigError for numbers that cannot be.
    """

    batch_size: int
    micro_batches: int = 1
    workers: int = 0
    seed: int = 0
    rank: int = 0
    ranks: int = 1
    start: Position = START
    shuffle: bool = True
    drop_last: bool = True
    pad_last: bool = False
    epochs: int | None = None
    pin_memory: bool = False
    bad_samples: BadSamplePolicy = "raise"
    bad_limit: float = 1.0
    mixture: Mixture | None = None
    text_layout: TextLayout | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise ConfigError(
                f"--batch-size {self.batch_size} --workers {self.workers}: expected at least 1 and at least 0."
            )
        if self.micro_batches < 1:
            raise ConfigError(f"--accum-freq {self.micro_batches}: expected at least 1 micro-batch per step.")
        if not 0 <= self.rank < self.ranks:
            raise ConfigError(
                f"rank {self.rank} of {self.ranks}: expected a rank from 0 to the number of ranks less 1."
            )
        if not self.drop_last and self.ranks > 1:
            raise ConfigError("the last partial batch can only be used with one process, since ranks stay in step.")

    @property
    def rows_per_rank(self) -> int:
        """Pairs of a whole step on one rank."""
        return self.batch_size * self.micro_batches

    @property
    def step_size(self) -> int:
        """Pairs of a whole step, all ranks together."""
        return self.rows_per_rank * self.ranks

    @property
    def arithmetic(self) -> str:
        """The pairs of a step as a product: "64 pairs (16 at a time x 4 micro-batches x 1 process)"; without micro-batches,
        "16 pairs (--batch-size 16 x 1 process)".
        """
        processes = f"{self.ranks} process{'es' if self.ranks > 1 else ''}"
        pairs = f"{self.step_size} pair{'s' if self.step_size > 1 else ''}"
        if self.micro_batches == 1:
            return f"{pairs} (--batch-size {self.batch_size} x {processes})"
        return f"{pairs} ({self.batch_size} at a time x {self.micro_batches} micro-batches x {processes})"

    def steps_per_epoch(self, count: int) -> int:
        """Steps in a whole epoch of ``count`` records, equal on every rank."""
        whole, rest = divmod(count, self.step_size)
        return whole + (1 if rest and (self.pad_last or not self.drop_last) else 0)


class SampleRequest(NamedTuple):
    """A sample to prepare: its position in the epoch's order, the record at that position, and the seed of its randomness."""

    epoch: int
    position: int
    record: int
    seed: int


class PlannedStep(NamedTuple):
    """A step of one rank: what each of its micro-batches reads, and the position to resume at after it."""

    micro_batches: list[list[SampleRequest]]
    after: Position


def plan_steps(options: LoaderOptions, count: int) -> Iterator[PlannedStep]:
    """Yield every step of this rank from ``options.start`` on; ``count`` is the number of positions of an epoch."""
    epoch, index = options.start.epoch, options.start.index
    # A full step must fit before the end of the epoch, or, where short steps are used, begin there.
    needed = options.step_size if options.drop_last and not options.pad_last else 1
    while options.epochs is None or epoch < options.epochs:
        while index + needed <= count:
            positions = _positions(options, index, count)
            index += options.step_size
            after = Position(epoch, index) if index + needed <= count else Position(epoch + 1, 0)
            requests = _requests(options, positions, count, epoch)
            size = options.batch_size
            yield PlannedStep([requests[first : first + size] for first in range(0, len(requests), size)], after)
        epoch, index = epoch + 1, 0


def _positions(options: LoaderOptions, index: int, count: int) -> np.ndarray:
    """This rank's positions, int64, of the step that begins at ``index``."""
    first = index + options.rank * options.rows_per_rank
    positions = np.arange(first, first + options.rows_per_rank)
    return positions % count if options.pad_last else positions[positions < count]


def _requests(options: LoaderOptions, positions: np.ndarray, count: int, epoch: int) -> list[SampleRequest]:
    records = records_at(options, positions, count, epoch)
    return [
        SampleRequest(epoch, position, record, sample_seed(options, epoch, record, position))
        for position, record in zip(positions.tolist(), records.tolist(), strict=True)
    ]


def records_at(options: LoaderOptions, positions: np.ndarray, count: int, epoch: int) -> np.ndarray:
    """The records at some positions of an epoch's order, int64."""
    if options.mixture is not None:
        return options.mixture.records(positions, options.seed, epoch)
    return permute(positions, count, options.seed, epoch) if options.shuffle else positions


def sample_seed(options: LoaderOptions, epoch: int, record: int, position: int) -> int:
    """63 bits from which all randomness of a sample is drawn, made of (seed, epoch, record).

    A mixture may draw a record twice in an epoch, so there the position is part of it. (The first edition made the seed of
    the position: a run resumed from a checkpoint of that time draws other crops and captions from then on.)
    """
    if options.mixture is not None:
        return draw(options.seed, epoch, record, position)
    return draw(options.seed, epoch, record)
