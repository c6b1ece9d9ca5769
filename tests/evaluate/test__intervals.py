"""Intervals and paired tests, held against what is known in closed form and against plain resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diptych.errors import ConfigError
from diptych.evaluate._intervals import Outcome, class_mean_interval, interval, paired


def outcome(right: int, wrong: int) -> Outcome:
    return Outcome(torch.tensor([True] * right + [False] * wrong))


def test_the_interval_of_single_queries_is_the_binomials():
    low, high = interval(outcome(700, 300))
    spread = 1.96 * math.sqrt(0.7 * 0.3 / 1000)
    assert low == pytest.approx(0.7 - spread, abs=0.004) and high == pytest.approx(0.7 + spread, abs=0.004)
    assert interval(outcome(700, 300)) == (low, high)
    assert interval(outcome(10, 0)) == (1.0, 1.0)


def test_queries_of_an_image_are_resampled_together():
    rng = np.random.default_rng(1)
    images = rng.random(300) < 0.6  # all five captions of an image succeed or fail together
    right, cluster = torch.tensor(np.repeat(images, 5)), torch.arange(300).repeat_interleave(5)
    low, high = interval(Outcome(right, cluster))
    naive_low, naive_high = interval(Outcome(right))
    assert (high - low) / (naive_high - naive_low) == pytest.approx(math.sqrt(5), rel=0.1)
    plain = [images[rng.integers(0, 300, 300)].mean() for _ in range(4000)]
    assert [low, high] == pytest.approx(np.percentile(plain, [2.5, 97.5]), abs=0.01)


def test_clusters_of_uneven_size_keep_the_ratio():
    right, cluster = torch.tensor([1, 1, 1, 0, 0]).bool(), torch.tensor([0, 0, 0, 1, 2])
    low, high = interval(Outcome(right, cluster))
    assert low == 0.0 and high == 1.0


def test_mean_per_class_resamples_within_classes():
    labels = torch.arange(4).repeat_interleave(100)
    right = torch.zeros(400, dtype=torch.bool)
    right[:100] = True  # one class always right, three always wrong: nothing varies
    assert class_mean_interval(right, labels) == (0.25, 0.25)


def test_the_paired_test_is_mcnemars():
    first = torch.tensor([1] * 50 + [0] * 50).bool()
    second = first.clone()
    second[50:60] = True  # ten gained,
    second[:2] = False  # two lost
    difference = paired(Outcome(first), Outcome(second))
    exact = 2 * sum(math.comb(12, k) for k in (10, 11, 12)) / 2**12
    assert difference.value == pytest.approx(0.08) and difference.p == pytest.approx(exact)
    assert difference.low > 0 and paired(Outcome(first), Outcome(first)).p == 1.0


def test_clustered_pairs_flip_whole_images():
    cluster = torch.arange(6).repeat_interleave(2)
    first = torch.zeros(12, dtype=torch.bool)
    second = torch.ones(12, dtype=torch.bool)
    second[-1] = (
        False  # five images gain both captions, the last gains a single caption: of 2^6 signs only two are as far
    )
    assert paired(Outcome(first, cluster), Outcome(second, cluster)).p == pytest.approx(2 / 64, abs=0.003)


def test_other_queries_are_refused():
    with pytest.raises(ConfigError, match="same queries"):
        paired(outcome(1, 1), outcome(1, 2))
    cluster = torch.tensor([0, 1])
    with pytest.raises(ConfigError, match="same queries"):
        paired(Outcome(torch.ones(2), cluster), Outcome(torch.ones(2), cluster + torch.tensor([0, 1])))
