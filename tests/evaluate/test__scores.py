"""Retrieval scores against a ten-line NumPy reference, the tie rule, and chance against a simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import ConfigError
from diptych.evaluate import chance, retrieval_scores, top_k
from diptych.evaluate._scores import ranks


def reference(scores: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """The ten lines: sort candidates by score, equal ones by index; look up the best rank of a right candidate."""
    result = {}
    for name, table, right in (
        ("image_to_text", scores, lambda i: np.flatnonzero(owner == i)),
        ("text_to_image", scores.T, lambda j: owner[[j]]),
    ):
        orders = [np.argsort(-row, kind="stable") for row in table]
        ranks = [1 + np.isin(order, right(q)).argmax() for q, order in enumerate(orders) if len(right(q))]
        result |= {f"{name}_R@{k}": float(np.mean(np.array(ranks) <= k)) for k in (1, 5, 10)}
        result[f"{name}_mean_rank"] = float(np.mean(ranks))
        result[f"{name}_median_rank"] = float(np.floor(np.median(ranks)))
    return result


def unit(rng: np.random.Generator, rows: int, width: int, dtype: type) -> np.ndarray:
    x = rng.standard_normal((rows, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)


def close(got: dict[str, float], expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 30),
    m=st.integers(1, 60),
    chunk=st.sampled_from([0, 1, 7, 1000]),
)
def test_grouped_scores_equal_the_numpy_reference(dtype, seed, n, m, chunk):
    rng = np.random.default_rng(seed)
    images, texts = unit(rng, n, 8, dtype), unit(rng, m, 8, dtype)
    owner = rng.integers(0, n, m)
    got = retrieval_scores(torch.tensor(images), torch.tensor(texts), torch.tensor(owner), chunk=chunk)
    close(got, reference(images.astype(np.float64) @ texts.astype(np.float64).T, owner))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 20),
    m=st.integers(1, 40),
    chunk=st.sampled_from([0, 1, 3]),
)
def test_ties_go_to_the_lower_index(seed, n, m, chunk):
    """Features of one-hot rows have products of 0 and 1 only, so nearly everything ties, exactly in any arithmetic."""
    rng = np.random.default_rng(seed)
    images, texts = np.eye(3)[rng.integers(0, 3, n)], np.eye(3)[rng.integers(0, 3, m)]
    owner = rng.integers(0, n, m)
    got = retrieval_scores(torch.tensor(images), torch.tensor(texts), torch.tensor(owner), chunk=chunk)
    close(got, reference(images @ texts.T, owner))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 12), each=st.integers(1, 5), chunk=st.sampled_from([0, 1, 4]))
def test_paired_scores_equal_the_reference_on_copied_rows(seed, n, each, chunk):
    rng = np.random.default_rng(seed)
    images, texts = unit(rng, n, 8, np.float64), unit(rng, n * each, 8, np.float64)
    owner = rng.permutation(np.repeat(np.arange(n), each))
    got = retrieval_scores(torch.tensor(images), torch.tensor(texts), torch.tensor(owner), "paired", chunk)
    close(got, reference((images @ texts.T)[owner], np.arange(n * each)))


@pytest.mark.parametrize("copies", [True, False])
def test_five_rows_of_an_image_hold_paired_recall_at_one_fifth(copies):
    """SOURCES 4.4: even a perfect model has R@1 = 0.2 and R@5 = 1 when every image has five rows."""
    images = torch.eye(40).repeat_interleave(5, dim=0) if copies else torch.eye(40)
    owner = torch.arange(200) // 5
    got = retrieval_scores(images, torch.eye(40)[owner], None if copies else owner, "paired")
    assert got["image_to_text_R@1"] == pytest.approx(0.2) and got["text_to_image_R@1"] == pytest.approx(0.2)
    assert got["image_to_text_R@5"] == 1.0 and got["text_to_image_R@5"] == 1.0
    grouped = retrieval_scores(torch.eye(40), torch.eye(40)[owner], owner)
    assert grouped["r_mean"] == 1.0 and grouped["text_to_image_mean_rank"] == 1.0


def test_the_three_means_are_those_of_the_recalls():
    rng = torch.Generator().manual_seed(0)
    got = retrieval_scores(torch.randn(50, 4, generator=rng), torch.randn(50, 4, generator=rng))
    text = sum(got[f"image_to_text_R@{k}"] for k in (1, 5, 10)) / 3
    image = sum(got[f"text_to_image_R@{k}"] for k in (1, 5, 10)) / 3
    assert (got["text_r_mean"], got["image_r_mean"]) == (pytest.approx(text), pytest.approx(image))
    assert got["r_mean"] == pytest.approx((text + image) / 2)


@pytest.mark.parametrize("value", [math.nan, 0.0, 1.0])
@pytest.mark.parametrize("protocol", ["grouped", "paired"])
def test_a_diverged_or_collapsed_model_scores_chance(value, protocol):
    got = retrieval_scores(torch.full((100, 8), value), torch.full((100, 8), value), protocol=protocol)
    assert got["text_to_image_R@1"] == 0.01 and got["image_to_text_R@10"] == 0.1
    assert got["text_to_image_mean_rank"] == 50.5


def test_one_broken_feature_ranks_last_and_spoils_no_other():
    features = torch.eye(10)
    broken = features.clone()
    broken[3] = math.nan
    got = retrieval_scores(broken, features)
    assert got["text_to_image_R@1"] == 0.9 and got["text_to_image_mean_rank"] == (9 + 10) / 10


def test_an_image_without_text_distracts_but_is_no_query():
    images, texts = torch.eye(3), torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    got = retrieval_scores(images, texts, torch.tensor([0, 2]))
    assert got["image_to_text_mean_rank"] == 1.0  # two queries
    assert got["text_to_image_mean_rank"] == 1.5  # the image in the middle comes before the first


def test_scores_do_not_follow_the_callers_autocast():
    rng = torch.Generator().manual_seed(1)
    images, texts = torch.randn(300, 16, generator=rng), torch.randn(300, 16, generator=rng)
    plain = retrieval_scores(images, texts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert retrieval_scores(images, texts) == plain


@pytest.mark.parametrize(
    ("images", "texts", "owner"),
    [
        (torch.eye(3), torch.eye(4), None),
        (torch.eye(3), torch.eye(3)[:2], None),
        (torch.eye(3), torch.eye(3), torch.tensor([0, 1, 3])),
        (torch.eye(3), torch.eye(3), torch.tensor([0, 1])),
        (torch.eye(3)[:0], torch.eye(3), torch.tensor([0, 0, 0])),
    ],
)
def test_features_that_do_not_fit_are_one_clear_line(images, texts, owner):
    with pytest.raises(ConfigError) as caught:
        retrieval_scores(images, texts, owner)
    assert "\n" not in str(caught.value)


def test_unknown_protocol_is_named():
    with pytest.raises(ConfigError, match="'pairs'"):
        retrieval_scores(torch.eye(3), torch.eye(3), protocol="pairs")  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 20), k=st.integers(1, 9), chunk=st.sampled_from([0, 1, 4]))
def test_top_k_is_the_head_of_the_full_order(seed, n, k, chunk):
    rng = np.random.default_rng(seed)
    queries, candidates = np.eye(3)[rng.integers(0, 3, 7)], np.eye(3)[rng.integers(0, 3, n)]
    values, indices = top_k(torch.tensor(queries), torch.tensor(candidates), k, chunk)
    scores = queries @ candidates.T
    assert np.array_equal(indices.numpy(), np.argsort(-scores, axis=1, kind="stable")[:, :k])
    assert np.array_equal(values.numpy(), np.take_along_axis(scores, indices.numpy(), 1))


def test_chance_is_exact_against_the_binomial_and_a_simulation():
    got = chance(5000, 25000, 5)
    assert got["text_to_image_R@10"] == 10 / 5000
    for k in (1, 5, 10):
        expected = 1 - math.comb(25000 - 5, k) / math.comb(25000, k)
        assert got[f"image_to_text_R@{k}"] == pytest.approx(expected, rel=1e-9)
    rng = torch.Generator().manual_seed(0)
    owner = torch.tensor([0, 0, 0, 1, 2, 2, 3, 5])  # the fifth image has no text
    trials = [
        retrieval_scores(torch.randn(6, 64, generator=rng), torch.randn(8, 64, generator=rng), owner)
        for _ in range(1500)
    ]
    expected_scores = chance(6, 8, torch.bincount(owner).tolist())
    for name, value in expected_scores.items():
        scale = 1.0 if "R@" in name or "mean" not in name or "r_mean" in name else 8.0
        assert np.mean([trial[name] for trial in trials]) == pytest.approx(value, abs=0.02 * scale), name


def test_chance_never_passes_one_and_paired_is_k_over_rows():
    assert chance(3, 3)["text_to_image_R@10"] == 1.0 and chance(3, 3)["image_to_text_R@5"] == 1.0
    assert chance(200, 1000, protocol="paired")["image_to_text_R@5"] == pytest.approx(5 / 1000)
    with pytest.raises(ConfigError):
        chance(3, 3, 4)


@pytest.mark.parametrize("count", [11, 17, 67])
def test_equal_candidates_tie_wherever_they_stand(count):
    """A product of many columns ends in a kernel of another width, which may round otherwise: seen with fp32 on CPUs."""
    torch.manual_seed(0)
    features, queries = torch.randn(count, 512), torch.randn(17, 512)
    features[[count // 2, count - 1]] = features[0].clone()
    own = [torch.full((17, 1), position) for position in (0, count // 2, count - 1)]
    first, second, third = (ranks(queries, features, item, chunk=1) for item in own)
    assert torch.equal(second, first + 1) and torch.equal(third, first + 2)
    again = torch.arange(count).flip(0)
    assert torch.equal(
        ranks(queries, features, own[0], columns=again, chunk=1), first
    )  # position 0 is the last, equal to the first
