"""Zero-shot classification: class vectors, accuracy, names and templates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diptych.devices import get_device
from diptych.errors import ConfigError, SourceError
from diptych.evaluate.zeroshot import accuracy, class_vectors, run
from tests.evaluate.colours import COLOURS, Model, Source, Tokenizer, record, transform


def folders(each: int = 2, names=tuple(COLOURS)) -> Source:
    records = [record(name, key=f"{name}{i}", label=place) for place, name in enumerate(names) for i in range(each)]
    return Source(records, "folders", [f"{name}_" for name in names])


def classify(source, model=None, **options):
    return run(model or Model(), source, Tokenizer(), transform, get_device("cpu"), **options)


def test_a_model_that_sees_names_every_picture():
    result = classify(folders(), templates=["a photo of a {}.", "some {}"])
    assert result.metrics == {"top1": 1.0, "top5": 1.0, "mean_per_class": 1.0}
    assert result.chance == {"top1": 0.1, "top5": 0.5, "mean_per_class": 0.1}
    assert result.count == {"images": 20, "classes": 10, "templates": 2}
    assert result.classes == tuple(COLOURS) and result.per_class == (1.0,) * 10


def test_accuracy_per_class_shows_where_a_model_is_blind():
    result = classify(folders(), Model(blind_to=("blue",)), templates="simple")
    wrong = {name for name, share in zip(result.classes, result.per_class, strict=True) if share < 1}
    assert wrong == {"blue"} and result.metrics["top1"] == pytest.approx(0.9)


def test_top5_is_left_out_below_five_classes():
    result = classify(folders(names=("red", "green", "blue")), templates="simple")
    assert "top5" not in result.metrics and set(result.metrics) == set(result.chance)


def test_class_vectors_are_the_normalised_mean_of_normalised_prompts():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((6, 5))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = np.stack([unit[:3].mean(0), unit[3:].mean(0)])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(class_vectors(torch.tensor(features), 2).numpy(), expected, atol=1e-6)


def test_accuracy_counts_each_class_alike_in_its_mean():
    answers = torch.tensor([[0, 1], [0, 1], [0, 1], [1, 2], [0, 2]])
    metrics, per_class = accuracy(answers, torch.tensor([0, 0, 0, 1, 1]), 3)
    assert metrics == {"top1": 0.8, "mean_per_class": 0.75}
    assert per_class[:2] == (1.0, 0.5) and math.isnan(per_class[2])


def test_limit_takes_pictures_of_all_classes():
    assert classify(folders(5), limit=10, templates="simple").metrics["mean_per_class"] == 1.0
    assert sum(not math.isnan(share) for share in classify(folders(5), limit=10, templates="simple").per_class) == 10


def test_names_from_a_file_and_a_wrong_number_of_them(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(COLOURS) + "\n")
    source = Source(folders().records, "folders", [f"n{place}" for place in range(10)])
    assert classify(source, labels=labels, templates="simple").metrics["top1"] == 1.0
    assert classify(source, templates="simple").metrics["top1"] < 1.0  # "n0" says nothing
    labels.write_text("red\ngreen\n")
    with pytest.raises(ConfigError, match="2 class names for the 10 class folders"):
        classify(source, labels=labels)


def test_a_source_without_labels_or_names_is_one_clear_line():
    with pytest.raises(SourceError, match="label"):
        classify(Source([record("red")], classes=["red"]))
    with pytest.raises(SourceError, match="label"):
        classify(Source([], classes=["red"]))
    with pytest.raises(ConfigError, match="no class names"):
        classify(Source([record("red", label=0)]))
    with pytest.raises(ConfigError, match="label 3 has no name"):
        classify(Source([record("red", label=3)], classes=["red"]))


def test_progress_counts_prompts_and_pictures():
    told: list[tuple[int, int]] = []
    classify(folders(), templates=["{}", "a {}"], progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (40, 40) and told == sorted(told)
