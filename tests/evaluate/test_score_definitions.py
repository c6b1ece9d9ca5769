"""Scores beyond their values: memory that is asked for, precision, clusters of outcomes, chance by counting every case."""

import itertools
import math

import numpy as np
import pytest
import torch

from diptych.errors import ConfigError
from diptych.evaluate import _scores, chance, retrieval_scores, top_k
from diptych.evaluate._scores import outcomes, ranks, retrieval_ranks, summary


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def blocks(monkeypatch):
    """The numbers of queries whose scores are computed at once, in order."""
    sizes = []
    products = _scores._products

    def recorded(queries, candidates):
        sizes.append(len(queries))
        return products(queries, candidates)

    monkeypatch.setattr(_scores, "_products", recorded)
    return sizes


@pytest.mark.parametrize(("chunk", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_a_chunk_is_the_number_of_queries_scored_at_once(blocks, chunk, sizes):
    owner = torch.arange(7)
    for protocol in ("grouped", "paired"):
        retrieval_ranks(random(7, 4), random(7, 4, seed=1), owner, protocol, chunk)
        assert blocks == sizes * 2
        blocks.clear()
    top_k(random(7, 4), random(9, 4, seed=1), 2, chunk)
    assert blocks == sizes


@pytest.mark.parametrize(("memory", "sizes"), [(5 * 9, [5, 2]), (9, [1] * 7), (8, [1] * 7), (1, [1] * 7), (2**24, [7])])
def test_without_a_chunk_as_many_queries_as_fit_the_memory(blocks, monkeypatch, memory, sizes):
    monkeypatch.setattr(_scores, "SCORES_IN_MEMORY", memory)
    top_k(random(7, 4), random(9, 4, seed=1), 2)
    ranks(random(7, 4), random(9, 4, seed=1), torch.zeros(7, 1, dtype=torch.int64))
    assert blocks == sizes * 2
    blocks.clear()
    columns = torch.arange(9) % 3  # what is held has a column for each, not for each candidate
    ranks(random(7, 4), random(3, 4, seed=1), torch.zeros(7, 1, dtype=torch.int64), columns=columns)
    assert blocks == sizes


def test_the_memory_is_64_mib_of_fp32():
    assert 4 * _scores.SCORES_IN_MEMORY == 64 * 2**20


def test_float64_features_are_scored_in_float64_and_all_others_in_float32():
    # Two texts whose cosines to the image differ by less than fp32 can tell.
    image = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    angles = torch.tensor([1.0, 1.0 - 1e-12], dtype=torch.float64)
    texts = torch.stack([angles.cos(), angles.sin()], dim=1)
    values, indices = top_k(image, texts, 2)
    assert indices.tolist() == [[1, 0]]
    assert values.dtype == torch.float64
    values, indices = top_k(image.float(), texts.float(), 2)
    assert indices.tolist() == [[0, 1]]
    assert values.dtype == torch.float32
    half = random(20, 8, dtype=torch.float32).half()
    values, _ = top_k(half, half, 1)
    assert values.dtype == torch.float32
    assert torch.allclose(values, torch.ones(20, 1), atol=1e-6)


def test_features_need_not_be_normalized():
    images, texts = random(12, 5), random(12, 5, seed=1)
    scaled = images * torch.logspace(-3, 3, 12, dtype=torch.float64)[:, None]
    assert retrieval_scores(scaled, texts * 7) == retrieval_scores(images, texts)


@pytest.mark.parametrize(("protocol", "text_images"), [("grouped", [0, 2, 3]), ("paired", [3, 0, 0, 2, 3])])
def test_outcomes_are_the_queries_by_image(protocol, text_images):
    owner = torch.tensor([3, 0, 0, 2, 3])
    ranked = retrieval_ranks(random(4, 6), random(5, 6, seed=1), owner, protocol)
    answers = outcomes(ranked)
    assert list(answers) == [
        f"{side}_to_{other}_R@{k}" for side, other in (("image", "text"), ("text", "image")) for k in (1, 5, 10)
    ]
    for name, outcome in answers.items():
        query_ranks = ranked.image_to_text if name.startswith("image") else ranked.text_to_image
        assert outcome.cluster.tolist() == (text_images if name.startswith("image") else owner.tolist())
        assert outcome.right.tolist() == [rank <= int(name.rpartition("@")[2]) for rank in query_ranks.tolist()]
        assert float(outcome.right.double().mean()) == pytest.approx(summary(ranked)[name])


@pytest.mark.parametrize(("images", "texts"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_rank_is_an_error(images, texts):
    owner = torch.zeros(texts, dtype=torch.int64)
    with pytest.raises(ConfigError, match=f"{images} images and {texts} texts: retrieval needs at least one of each"):
        retrieval_scores(torch.ones(images, 2), torch.ones(texts, 2), owner)


@pytest.mark.parametrize("owner", [[-1, 0], [0, 2], [0], [0, 1, 1]])
def test_an_owner_outside_of_the_images_is_an_error(owner):
    with pytest.raises(ConfigError, match=r"expected one index in 0\.\.1 for each of 2 texts"):
        retrieval_scores(torch.eye(2), torch.eye(2), torch.tensor(owner))


@pytest.mark.parametrize("shapes", [((2,), (2, 2)), ((2, 2), (2,)), ((2, 3), (2, 2)), ((2, 2, 1), (2, 2))])
def test_features_of_another_shape_are_an_error(shapes):
    with pytest.raises(ConfigError, match=r"expected \[N, D\] and \[M, D\]"):
        retrieval_scores(torch.ones(shapes[0]), torch.ones(shapes[1]))


def exact_chance(counts):
    """Mean over every order of the texts, and of the images, of each metric: what random features give on average."""
    owner = np.repeat(np.arange(len(counts)), counts)
    sums = {}
    orders = list(itertools.permutations(range(len(owner))))
    for order in orders:
        best = [
            1 + min(order.index(text) for text in np.flatnonzero(owner == image))
            for image in range(len(counts))
            if counts[image]
        ]
        for k in (1, 5, 10):
            sums[f"image_to_text_R@{k}"] = sums.get(f"image_to_text_R@{k}", 0) + np.mean([rank <= k for rank in best])
        sums["image_to_text_mean_rank"] = sums.get("image_to_text_mean_rank", 0) + np.mean(best)
    return {name: value / len(orders) for name, value in sums.items()}


@pytest.mark.parametrize("counts", [[1, 1, 1], [2, 1, 3], [4, 2], [3, 0, 3], [6], [1, 5]])
def test_chance_is_the_mean_over_every_order(counts):
    expected = exact_chance(counts)
    result = chance(len(counts), sum(counts), counts)
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-12), name
    for k in (1, 5, 10):
        assert result[f"text_to_image_R@{k}"] == min(1.0, k / len(counts))
    assert result["text_to_image_mean_rank"] == (len(counts) + 1) / 2
    text = sum(result[f"image_to_text_R@{k}"] for k in (1, 5, 10)) / 3
    image = sum(result[f"text_to_image_R@{k}"] for k in (1, 5, 10)) / 3
    assert (result["text_r_mean"], result["image_r_mean"]) == (pytest.approx(text), pytest.approx(image))
    assert result["r_mean"] == pytest.approx((text + image) / 2)


def test_chance_without_counts_takes_the_even_share_rounded():
    assert chance(10, 50) == chance(10, 50, 5) == chance(10, 50, [5] * 10)
    assert chance(10, 26) == chance(10, 26, 3)
    assert chance(10, 24) == chance(10, 24, 2)
    assert chance(10, 4)["image_to_text_R@1"] == chance(10, 4, 1)["image_to_text_R@1"] == 0.25
    assert chance(7, 35, protocol="paired") == chance(35, 35, 1)


def test_chance_of_more_captions_than_there_are_is_an_error():
    assert chance(2, 6, 6)["image_to_text_R@1"] == 1.0
    with pytest.raises(ConfigError, match="7 captions of one image, but only 6 captions in all"):
        chance(2, 6, 7)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_the_best_of_many_candidates_are_those_of_a_full_sort_ties_included(k):
    generator = np.random.default_rng(0)
    scores = torch.tensor(generator.integers(0, 6, (50, 40)), dtype=torch.float64)  # full of ties across the k-th
    values, indices = _scores.best_columns(scores.clone(), k)
    expected = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k]
    assert np.array_equal(indices.numpy(), expected)
    assert np.array_equal(values.numpy(), np.take_along_axis(scores.numpy(), expected, 1))
    distinct = torch.tensor(generator.permuted(np.tile(np.arange(40.0), (50, 1)), axis=1))
    values, indices = _scores.best_columns(distinct, k)
    assert torch.equal(values, torch.arange(39.0, 39 - k, -1, dtype=torch.float64).expand(50, k))
    assert torch.equal(distinct.gather(1, indices), values)


@pytest.mark.parametrize("where", [(0, 0), (0, 3), (4, 0), (4, 3)])
def test_a_feature_that_is_not_a_number_ranks_last_wherever_it_is(where):
    images, texts = torch.eye(5), torch.eye(5)
    images[where] = math.nan
    ranked = retrieval_ranks(images, texts)
    broken = where[0]
    assert ranked.text_to_image.tolist() == [5 if number == broken else 1 for number in range(5)]
    assert [rank for number, rank in enumerate(ranked.image_to_text.tolist()) if number != broken] == [1] * 4


def test_medians_of_even_counts_are_rounded_down():
    ranks_of = torch.tensor([1, 2, 4, 9])
    assert _scores._summary("x", ranks_of)["x_median_rank"] == 3.0
    assert _scores._summary("x", torch.tensor([1, 2, 5, 9]))["x_median_rank"] == 3.0
    assert _scores._summary("x", torch.tensor([7, 1, 2]))["x_median_rank"] == 2.0
    assert _scores._summary("x", ranks_of)["x_mean_rank"] == 4.0
    assert _scores._summary("x", ranks_of)["x_R@5"] == 0.75
    assert _scores._summary("x", torch.zeros(0, dtype=torch.int64))["x_median_rank"] == 0.0
