"""How sure a score is: bootstrap intervals (Efron 1979) and paired tests between two models on the same queries.

Outcomes are 0 or 1 per query; queries of the same image are resampled together, since they are not independent. Resampling
n clusters of which many are equal is a multinomial draw over the distinct ones, so the bootstrap here is exact in law and takes
microseconds for a million queries. The random numbers are seeded: the same outcomes give the same interval. It knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diptych.errors import ConfigError

DRAWS = 2000
FLIPS = 100_000
LOW, HIGH = 2.5, 97.5  # a 95 % interval


@dataclass(frozen=True)
class Outcome:
    """Right (1) or wrong (0) for each query, [n]; ``cluster`` int64 [n] is the image that a query belongs to, or None."""

    right: Tensor
    cluster: Tensor | None = None

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Right answers and queries of each cluster, float64 [clusters] both; clusters by their number."""
        right = self.right.cpu().double()
        if self.cluster is None:
            return right.numpy(), np.ones(len(right))
        _, cluster = self.cluster.cpu().unique(return_inverse=True)
        size = torch.bincount(cluster)
        return torch.bincount(cluster, right, minlength=len(size)).numpy(), size.double().numpy()


@dataclass(frozen=True)
class Difference:
    """A second model's score minus the first's: ``value``, its 95 % interval, and the two-sided ``p`` of no difference."""

    value: float
    low: float
    high: float
    p: float


def interval(outcome: Outcome, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the share of right answers, clusters resampled whole."""
    return _bootstrap(*outcome.sums(), seed=seed)


def intervals(outcomes: Mapping[str, Outcome]) -> dict[str, tuple[float, float]]:
    """The interval of each metric."""
    return {name: interval(outcome) for name, outcome in outcomes.items() if len(outcome.right)}


def class_mean_interval(right: Tensor, labels: Tensor, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of per-class accuracies; images are resampled within their class."""
    counts = torch.bincount(labels).numpy()
    hits = torch.bincount(labels[right.bool()], minlength=len(counts)).numpy()
    present = counts > 0
    counts, hits = counts[present], hits[present]
    drawn = np.random.default_rng(seed).binomial(counts, hits / counts, (DRAWS, len(counts)))
    return _ends((drawn / counts).mean(axis=1))


def paired(first: Outcome, second: Outcome, seed: int = 0) -> Difference:
    """Compare two models on the same queries, in the same order.

    The interval is the bootstrap's; ``p`` is the sign-flip test over clusters, which for single queries is McNemar's exact
    test (1947). Raises ConfigError when the queries are not the same.
    """
    same = (first.cluster is None) == (second.cluster is None) and len(first.right) == len(second.right)
    if not same or not (first.cluster is None or bool((first.cluster.cpu() == second.cluster.cpu()).all())):  # type: ignore[union-attr]
        raise ConfigError(
            f"{len(first.right)} and {len(second.right)} answers: a paired test needs both models' answers to the same "
            "queries in the same order."
        )
    (first_sums, counts), (second_sums, _) = first.sums(), second.sums()
    differences = second_sums - first_sums
    low, high = _bootstrap(differences, counts, seed=seed)
    return Difference(float(differences.sum() / max(counts.sum(), 1)), low, high, _sign_flips(differences, seed))


def _bootstrap(sums: np.ndarray, sizes: np.ndarray, seed: int) -> tuple[float, float]:
    if not len(sums):
        return math.nan, math.nan
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), DRAWS)
    return _ends((drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1]))


def _ends(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(draws, (LOW, HIGH))
    return float(low), float(high)


def _sign_flips(differences: np.ndarray, seed: int) -> float:
    """The probability of a sum at least as far from 0, were each cluster's sign a coin's throw."""
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    observed = abs(differences.sum())
    if len(sizes) == 1:
        return _two_sided_binomial(int(counts[0]), round(observed / sizes[0]))
    heads = np.random.default_rng(seed).binomial(counts, 0.5, (FLIPS, len(sizes)))
    as_far = np.abs((2 * heads - counts) @ sizes) >= observed - 1e-9
    return float((1 + as_far.sum()) / (1 + FLIPS))


def _two_sided_binomial(count: int, surplus: int) -> float:
    """P(|heads - tails| >= surplus) of ``count`` throws, exactly."""
    if surplus == 0:
        return 1.0
    least = (count + surplus) // 2
    halves = -count * math.log(2)
    terms = [
        math.exp(math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) + halves)
        for k in range(least, count + 1)
    ]
    return min(1.0, 2 * math.fsum(terms))
