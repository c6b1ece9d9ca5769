"""Zero-shot classification: class vectors, accuracy, names and templates."""

from __future__ import annotations

import math

import pytest
import torch

from diptych.errors import ConfigError, SourceError
from diptych.evaluate import EVALUATORS, LabeledImages
from diptych.evaluate._accuracy import accuracy
from diptych.evaluate._intervals import paired
from diptych.evaluate.zeroshot import Zeroshot, ZeroshotOptions
from diptych.types import Record
from tests.evaluate.colors import COLORS, Model, Source, encoder, png, record


def folders(each: int = 2, names=tuple(COLORS)) -> Source:
    records = [record(name, key=f"{name}{i}", label=number) for number, name in enumerate(names) for i in range(each)]
    return Source(records, "folders", [f"{name}_" for name in names])


def classify(source, model=None, progress=None, **texts):
    """``texts`` lie beside the images, as lists of them do."""
    return Zeroshot().run(encoder(model), LabeledImages(source, **texts), ZeroshotOptions(), progress)


def test_a_model_that_sees_classifies_every_image():
    result = classify(folders(), templates=["a photo of a {}.", "some {}"])
    assert result.metrics == {"top1": 1.0, "top5": 1.0, "mean_per_class": 1.0}
    assert result.chance == {"top1": 0.1, "top5": 0.5, "mean_per_class": 0.1}
    assert result.count == {"images": 20, "classes": 10, "templates": 2}
    assert result.classes == tuple(COLORS) and result.per_class == (1.0,) * 10


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


def test_names_from_a_file_and_a_wrong_number_of_them(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(COLORS) + "\n")
    source = Source(folders().records, "folders", [f"n{number}" for number in range(10)])
    assert classify(source, labels=str(labels), templates="simple").metrics["top1"] == 1.0
    assert classify(source, templates="simple").metrics["top1"] < 1.0  # "n0" says nothing
    labels.write_text("red\ngreen\n")
    with pytest.raises(ConfigError, match="2 class names for the 10 class folders"):
        classify(source, labels=str(labels))


def test_a_source_without_labels_or_names_is_a_clear_line():
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


def test_progress_counts_prompts_and_images():
    calls: list[tuple[int, int]] = []
    classify(folders(), templates=["{}", "a {}"], progress=lambda *call: calls.append(call))
    assert calls[-1] == (40, 40) and calls == sorted(calls)


def test_records_may_carry_class_names_as_in_declips_list():
    records = [Record(name, png(name), (), number, None, {"label_name": name}) for number, name in enumerate(COLORS)]
    assert classify(Source(records), templates="cc").classes == tuple(COLORS)
    with pytest.raises(ConfigError, match="no class names"):
        classify(Source([*records[:3], Record("x", png("red"), (), 3)]), templates="cc")


def test_confusions_intervals_and_the_paired_test_show_where_and_whether_two_models_differ():
    seeing, blind = classify(folders(40)), classify(folders(40), Model(blind_to=("blue", "pink")))
    assert seeing.worst_confusions() == [] and int(seeing.confusion().diagonal().sum()) == 400
    matrix = blind.confusion()
    assert matrix.sum() == 400 and torch.equal(matrix.sum(dim=1), torch.full((10,), 40))
    worst = blind.worst_confusions(1)[0]
    assert worst.true in (2, 7) and worst.times == matrix[worst.true, worst.predicted] == 40
    low, high = blind.intervals["top1"]
    assert low < blind.metrics["top1"] == 0.8 < high and high - low < 0.1
    difference = paired(seeing.outcomes["top1"], blind.outcomes["top1"])
    assert difference.value == pytest.approx(-0.2) and difference.p < 1e-20 and difference.high < 0
    entry = blind.entry("a")
    assert len(entry["per_class"]) == 10 and entry["confusions"][0][2] == 40


def test_options_win_over_texts_beside_the_images_and_those_over_the_defaults(tmp_path):
    beside = LabeledImages(folders(), labels=[f"n{number}" for number in range(10)], templates=["{}"])
    assert Zeroshot().run(encoder(), beside, ZeroshotOptions()).metrics["top1"] < 1.0
    (tmp_path / "labels.txt").write_text("\n".join(COLORS))
    result = Zeroshot().run(encoder(), beside, ZeroshotOptions("prompt6", str(tmp_path / "labels.txt")))
    assert result.metrics["top1"] == 1.0 and result.count["templates"] == 6
    assert Zeroshot().run(encoder(), folders(), ZeroshotOptions()).count["templates"] == 80


def test_predictions_and_drawings_show_the_mistakes():
    source = folders(3)
    result = classify(source, Model(blind_to=("blue",)), templates=["{}"])
    lines = list(EVALUATORS.get("zeroshot")().predictions(result, source))
    assert [line["image"] for line in lines] == [item.key for item in source.records]
    wrong = [line for line in lines if line["label"] != line["prediction"]]
    assert {line["label_name"] for line in wrong} == {"blue"} and len(wrong) == 3
    assert lines[0]["best"][0] == lines[0]["prediction"] and len(lines[0]["scores"]) == 5
    (part,) = Zeroshot().images(result, source)
    (row,) = part["rows"]
    assert part["title"].endswith("folders") and row["query"]["text"].startswith("blue, classified as ")
    assert row["query"]["text"].endswith("3 times") and row["query"]["image"].startswith("data:image/")
    assert not row["hits"][0]["correct"]
    assert Zeroshot().images(classify(source), source) == []
