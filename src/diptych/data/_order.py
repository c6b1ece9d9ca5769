"""The order of the data as a pure function: (seed, epoch, position) -> record, in constant memory.

A Feistel network permutes the smallest power of four that holds all positions; positions that fall outside are sent through again
until they land inside (cycle walking), which keeps it a bijection. So every record is visited exactly once per epoch, in an
order that depends on nothing but the seed and the epoch: not on ranks, workers, or where a run was interrupted.
Not cryptography: it only has to look shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diptych.errors import ConfigError

ORDER_VERSION = 2
"""Counts the editions of the order and of samples' seeds: a run is resumed with its own only."""
ROUNDS = 6
WORD = (1 << 64) - 1


def mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer: uint64 -> uint64, every input bit reaching every output bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def draw(*numbers: int) -> int:
    """One 63-bit number from several: the seed of a sample's randomness. The same as ``mixed``, in plain integers."""
    state = 0
    for number in numbers:
        state = ((state ^ (number & WORD)) + 0x9E3779B97F4A7C15) & WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & WORD
        state ^= state >> 31
    return state >> 1


def permute(positions: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """The records at ``positions`` (integers in [0, count)) of an epoch, int64, of the same shape."""
    half = np.uint64(max(1, (max(count - 1, 1).bit_length() + 1) // 2))
    keys = [np.uint64(draw(seed, epoch, number)) for number in range(ROUNDS)]
    records = _feistel(np.asarray(positions).astype(np.uint64), half, keys)
    outside = records >= count
    while outside.any():
        records[outside] = _feistel(records[outside], half, keys)
        outside = records >= count
    return records.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, keys: list[np.uint64]) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (mixed(right ^ key) & mask)
    return (left << half) | right


class Mixture:
    """Sampling with replacement, by weight over several sources: the record at each position, as a pure function.

    ``sizes`` are the numbers of records of the sources, in the joined order; a source is drawn in
    proportion to its size times its factor (open_clip's --train-data-upsampling-factors). An epoch has ``count`` positions.
    """

    def __init__(self, sizes: Sequence[int], factors: Sequence[float] = (), count: int = 0) -> None:
        factors = list(factors) or [1.0] * len(sizes)
        if len(factors) != len(sizes):
            raise ConfigError(
                f"--train-data-upsampling-factors: {len(factors)} factors for {len(sizes)} sources; give one for each."
            )
        if not all(0 <= factor < np.inf for factor in factors) or not any(factors):
            raise ConfigError(
                "--train-data-upsampling-factors: expected finite numbers of at least 0, one of them above it."
            )
        self.count = count or sum(sizes)
        self.sizes = np.array(sizes, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        shares = self.sizes * np.array(factors)
        self.ends = np.cumsum(shares / shares.sum())

    def records(self, positions: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """The records at ``positions`` of an epoch, int64, of the same shape."""
        key = np.uint64(draw(seed, epoch, -1))
        first = mixed(np.asarray(positions).astype(np.uint64) ^ key)
        # 53 bits are what a double holds exactly.
        chosen = np.searchsorted(self.ends, (first >> np.uint64(11)) / float(1 << 53), side="right")
        chosen = np.minimum(chosen, len(self.sizes) - 1)
        inside = mixed(first) % self.sizes[chosen].astype(np.uint64)
        return self.starts[chosen] + inside.astype(np.int64)
