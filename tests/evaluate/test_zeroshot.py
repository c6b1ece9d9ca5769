"""Zero-shot classification: class vectors, accuracy, names and templates."""

from __future__ import annotations

import math

import pytest
import torch

from diptych.devices import get_device
from diptych.errors import ConfigError, SourceError
from diptych.evaluate._accuracy import accuracy
from diptych.evaluate._intervals import paired
from diptych.evaluate.zeroshot import run
from diptych.types import Record
from tests.evaluate.colours import COLOURS, Model, Source, Tokenizer, png, record, transform


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
    with pytest.raises(SourceError, match="negative"):
        classify(Source([record("red", label=-1)], classes=["red"]))
    with pytest.raises(ConfigError, match="label 3 has no name"):
        classify(Source([record("red", label=3)], classes=["red"]))


def test_progress_counts_prompts_and_pictures():
    told: list[tuple[int, int]] = []
    classify(folders(), templates=["{}", "a {}"], progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (40, 40) and told == sorted(told)


def test_names_may_stand_in_the_records_as_in_declips_list():
    records = [Record(name, png(name), (), place, None, {"label_name": name}) for place, name in enumerate(COLOURS)]
    assert classify(Source(records), templates="cc").classes == tuple(COLOURS)
    with pytest.raises(ConfigError, match="no class names"):
        classify(Source([*records[:3], Record("x", png("red"), (), 3)]), templates="cc")


def test_confusions_intervals_and_the_paired_test_tell_where_and_whether_two_models_differ():
    seeing, blind = classify(folders(40)), classify(folders(40), Model(blind_to=("blue", "pink")))
    assert seeing.worst_confusions() == [] and int(seeing.confusion().diagonal().sum()) == 400
    matrix = blind.confusion()
    assert matrix.sum() == 400 and torch.equal(matrix.sum(dim=1), torch.full((10,), 40))
    worst = blind.worst_confusions(1)[0]
    assert worst.true in (2, 7) and worst.times == matrix[worst.true, worst.said] == 40
    low, high = blind.intervals["top1"]
    assert low < blind.metrics["top1"] == 0.8 < high and high - low < 0.1
    difference = paired(seeing.outcomes["top1"], blind.outcomes["top1"])
    assert difference.value == pytest.approx(-0.2) and difference.p < 1e-20 and difference.high < 0
    entry = blind.entry("a")
    assert len(entry["per_class"]) == 10 and entry["confusions"][0][2] == 40
