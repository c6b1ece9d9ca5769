"""Intervals and paired tests by their definitions: full enumeration where it is possible, plain resampling elsewhere."""

import itertools
import math

import numpy as np
import pytest
import torch

from diptych.evaluate._intervals import (
    DRAWS,
    FLIPS,
    HIGH,
    LOW,
    Difference,
    Outcome,
    class_mean_interval,
    interval,
    intervals,
    paired,
)


def outcome(right, cluster=None):
    return Outcome(torch.tensor(right).bool(), None if cluster is None else torch.tensor(cluster))


def exact_p(first, second, cluster):
    """The share of all sign patterns of the clusters' differences whose sum is at least as far from 0."""
    clusters = sorted(set(cluster))
    differences = [
        sum(s - f for f, s, c in zip(first, second, cluster, strict=True) if c == number) for number in clusters
    ]
    sums = [
        abs(sum(sign * size for sign, size in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return np.mean([value >= abs(sum(differences)) for value in sums])


def test_sums_are_right_answers_and_queries_of_each_cluster():
    right, queries = outcome([1, 0, 1, 1, 0], [7, 3, 7, 3, 9]).sums()
    assert right.tolist() == [1.0, 2.0, 0.0]  # clusters 3, 7, 9
    assert queries.tolist() == [2.0, 2.0, 1.0]
    right, queries = outcome([1, 0]).sums()
    assert (right.tolist(), queries.tolist()) == ([1.0, 0.0], [1.0, 1.0])
    assert right.dtype == queries.dtype == np.float64


def test_the_numbers_of_draws_are_those_of_the_documentation():
    assert (DRAWS, FLIPS) == (2000, 100_000)


def test_an_interval_is_the_percentiles_of_resampled_shares():
    right = [1] * 30 + [0] * 70
    rng = np.random.default_rng(3)
    shares = [rng.choice(right, 100).mean() for _ in range(20_000)]
    assert interval(outcome(right)) == pytest.approx(np.percentile(shares, [2.5, 97.5]), abs=0.011)


def test_an_interval_depends_on_its_seed_and_on_nothing_else():
    right = outcome([1] * 30 + [0] * 71)
    assert interval(right) == interval(right, seed=0)
    assert len({interval(right, seed=seed) for seed in range(8)}) > 1


def test_no_query_has_no_interval():
    assert all(math.isnan(end) for end in interval(outcome([])))
    both = intervals({"a": outcome([1, 0, 1]), "empty": outcome([])})
    assert both == {"a": interval(outcome([1, 0, 1]))}


def test_the_mean_over_classes_ignores_absent_classes_and_weighs_the_others_equally():
    labels = torch.tensor([0] * 400 + [3] * 100)
    right = torch.tensor(([1, 0] * 200) + [1] * 100)
    low, high = class_mean_interval(right, labels)
    spread = 1.96 * math.sqrt(0.25 / 400) / 2  # only the first class varies, and it is half of the mean
    assert (low, high) == pytest.approx((0.75 - spread, 0.75 + spread), abs=0.003)
    assert class_mean_interval(right, labels) == (low, high)
    assert len({class_mean_interval(right, labels, seed=seed) for seed in range(8)}) > 1
    # A class of one image is a class: its accuracy is 1, that of the other 0.
    assert class_mean_interval(torch.tensor([True, False, False]), torch.tensor([1, 4, 4])) == (0.5, 0.5)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 3), (5, 1), (1, 6), (9, 2), (40, 20)])
def test_the_p_of_single_queries_is_the_exact_sign_test(gained, lost):
    first, second = [0] * gained + [1] * lost + [1, 0], [1] * gained + [0] * lost + [1, 0]
    total, more = gained + lost, max(gained, lost)
    tail = sum(math.comb(total, number) for number in range(more, total + 1)) / 2**total
    result = paired(outcome(first), outcome(second))
    assert result.p == pytest.approx(min(1.0, 2 * tail) if total else 1.0, rel=1e-9)
    assert result.value == pytest.approx((gained - lost) / (total + 2))


@pytest.mark.parametrize("seed", range(4))
def test_the_p_of_clusters_is_the_share_of_sign_patterns(seed):
    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(9), 3).tolist()
    first, second = (rng.random(27) < 0.3).astype(int).tolist(), (rng.random(27) < 0.6).astype(int).tolist()
    result = paired(outcome(first, cluster), outcome(second, cluster))
    assert result.p == pytest.approx(exact_p(first, second, cluster), abs=0.006)


def test_the_interval_of_a_difference_resamples_pairs():
    rng = np.random.default_rng(0)
    first, second = (rng.random(400) < 0.5).astype(float), (rng.random(400) < 0.6).astype(float)
    differences = second - first
    draws = [rng.choice(differences, 400).mean() for _ in range(8000)]
    result = paired(outcome(first), outcome(second))
    assert isinstance(result, Difference)
    assert (result.low, result.high) == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.008)
    assert result.value == pytest.approx(differences.mean())
    swapped = paired(outcome(second), outcome(first))
    assert swapped.value == pytest.approx(-result.value)
    assert swapped.p == result.p


def test_the_least_p_of_clusters_is_never_zero():
    cluster = np.repeat(np.arange(60), 2).tolist()
    second = [1, 1] * 59 + [1, 0]
    assert paired(outcome([0] * 120, cluster), outcome(second, cluster)).p == pytest.approx(1 / (1 + FLIPS))


def test_seeds_move_an_approximate_p_a_little():
    cluster = [0, 0, 1, 1, 2, 3, 4, 4]
    arguments = outcome([0] * 8, cluster), outcome([1, 1, 1, 0, 1, 0, 1, 1], cluster)
    results = {paired(*arguments, seed=seed).p for seed in range(5)}
    assert len(results) > 1
    assert max(results) - min(results) < 0.01
    assert paired(*arguments) == paired(*arguments, seed=0)
    many = outcome([0, 1] * 60), outcome([1, 1, 0] * 40)
    assert paired(*many, seed=3) == paired(*many, seed=3) != paired(*many, seed=4)


def test_the_bounds_are_the_2_5th_and_the_97_5th_percentile():
    right = outcome([1] * 30 + [0] * 71)
    rows, sizes = right.sums()
    chosen = np.random.default_rng(0).integers(0, len(rows), (DRAWS, len(rows)))
    shares = rows[chosen].sum(axis=1) / sizes[chosen].sum(axis=1)
    for bound, percentile, beside in zip(interval(right), (2.5, 97.5), (4.5, 99.5), strict=True):
        spread = abs(np.percentile(shares, beside) - np.percentile(shares, percentile))
        assert abs(bound - np.percentile(shares, percentile)) < spread / 2
    assert (LOW, HIGH) == (2.5, 97.5)


def test_without_a_seed_it_is_0():
    right, labels = torch.tensor([1, 0, 1, 1, 0, 1, 0, 0]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    assert class_mean_interval(right, labels) == class_mean_interval(right, labels, seed=0)
    assert interval(outcome([1, 0, 1, 1, 0, 1, 0, 0])) == interval(outcome([1, 0, 1, 1, 0, 1, 0, 0]), seed=0)
    wide = [1, 0, 1, 1, 0, 1, 0, 0] * 13
    assert interval(outcome(wide)) != interval(outcome(wide), seed=1) or DRAWS > 10**6
