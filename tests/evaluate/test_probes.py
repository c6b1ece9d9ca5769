"""Probes: logistic regression against scikit-learn's, neighbors against a plain loop, features cached and renewed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diptych.errors import ConfigError, SourceError
from diptych.evaluate import EVALUATORS, ProbeData
from diptych.evaluate._cache import Labeled
from diptych.evaluate.knn import votes
from diptych.evaluate.linear_probe import choose_strength, fit
from tests.evaluate.colors import COLORS, Model, Source, encoder, record


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def clouds(count: int = 400, classes: int = 6, width: int = 12, noise: float = 1.2, seed: int = 0) -> Labeled:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    centers = np.random.default_rng(99).standard_normal((classes, width))
    features = centers[labels] + noise * rng.standard_normal((count, width))
    return Labeled(torch.tensor(features, dtype=torch.float32), torch.tensor(labels))


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_the_regression_is_scikit_learns(strength):
    linear = pytest.importorskip("sklearn.linear_model")
    data = clouds()
    ours = fit(data, strength)
    theirs = linear.LogisticRegression(C=strength, max_iter=5000, tol=1e-10).fit(data.features.double(), data.labels)
    assert np.allclose(ours.weight, theirs.coef_, atol=2e-3 * np.abs(theirs.coef_).max())
    test = clouds(seed=1)
    answers = ours.scores(test.features).argmax(dim=1)
    assert np.mean(answers.numpy() == theirs.predict(test.features.double())) > 0.997


def test_the_sweep_finds_the_strength_that_suits():
    data = clouds(count=80, width=60, noise=3.0)  # more columns than it can learn from: little freedom is best
    tried, best = choose_strength(data)
    accuracy = dict(tried)
    assert best < 1.0 and accuracy[best] == max(accuracy.values()) > accuracy[1e3]
    assert len(tried) >= 10  # refined beyond the powers of ten


def test_neighbors_vote_as_in_a_plain_loop():
    train, test = clouds(60), clouds(9, seed=1)
    voted = votes(train, test.features, 6, k=7, temperature=0.1)
    for index, feature in enumerate(test.features):
        cosine = torch.nn.functional.cosine_similarity(feature[None], train.features)
        expected = torch.zeros(6)
        for neighbor in cosine.argsort(descending=True)[:7]:
            expected[train.labels[neighbor]] += torch.exp((cosine[neighbor] - cosine.max()) / 0.1)
        assert torch.allclose(voted[index], expected, atol=1e-5)


def folders(each: int, names=tuple(COLORS)) -> Source:
    records = [record(name, key=f"{name}{i}", label=number) for number, name in enumerate(names) for i in range(each)]
    return Source(records, "folders", list(names))


def probe(name: str, model, test, train, **options):
    evaluator = EVALUATORS.get(name)()
    return evaluator.run(encoder(model), ProbeData(train, test), evaluator.Options(**options))


@pytest.mark.parametrize("name", ["linear_probe", "knn"])
def test_a_model_that_sees_colors_is_probed_perfectly(name):
    result = probe(name, Model(), folders(2), train=folders(5))
    assert result.metrics == {"top1": 1.0, "top5": 1.0, "mean_per_class": 1.0}
    assert result.count == {"images": 20, "classes": 10, "training images": 50}
    assert result.intervals["top1"] == (1.0, 1.0) and result.entry("x")["name"] == "x"


def test_features_are_cached_until_weights_or_images_change():
    model, train, test = Model(), folders(3), folders(1)

    def encoded() -> int:
        model.batches.clear()
        probe("knn", model, test, train=train)
        return sum(size for size, _ in model.batches)

    assert encoded() == 40
    assert encoded() == 0
    test.records[0] = record("green", key="red0", label=0)
    assert encoded() == 10  # the test set only
    with torch.no_grad():
        model.colors.weight[1] += 1
    assert encoded() == 40


def test_sets_that_do_not_fit_are_a_clear_line():
    with pytest.raises(SourceError, match="different classes: blue"):
        probe("knn", Model(), folders(1, ("red", "green")), train=folders(1, ("red", "blue")))
    with pytest.raises(SourceError, match="needs a label for each image"):
        probe("linear_probe", Model(), folders(1), train=Source([record("red")]))
    part = folders(1)
    part.records = part.records[:5]
    with pytest.raises(SourceError, match="no image"):
        probe("knn", Model(), folders(1), train=part)
    with pytest.raises(ConfigError, match="--knn-k 0"):
        probe("knn", Model(), folders(1), train=folders(1), knn_k=0)
