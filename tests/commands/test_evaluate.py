"""``diptych evaluate`` on folders as users have them: what is printed, what is kept, and two models side by side."""

from __future__ import annotations

import json

import pytest
import torch

from diptych import weights
from diptych.commands import main
from diptych.models import create_model
from tests.evaluate.colors import COLORS, png


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def models(tmp_path):
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        weights.save(tmp_path / f"{name}.safetensors", create_model("tiny-test"))
    return [str(tmp_path / f"{name}.safetensors") for name in ("a", "b")]


def class_folders(root, each=3):
    for name in COLORS:
        (root / name).mkdir(parents=True)
        for number in range(each):
            (root / name / f"{number}.png").write_bytes(png(name, (32 + number, 24)))
    return str(root)


def evaluated(capsys, *words):
    assert main(["evaluate", "--device", "cpu", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


def test_two_models_probes_and_a_folder_of_results(tmp_path, models, capsys):
    photos = class_folders(tmp_path / "photos")
    out = tmp_path / "out"
    found = evaluated(
        capsys, "--pretrained", models[0], "--against", models[1], "--imagenet-val", photos, "--templates", "simple",
        "--probe-train", photos, "--knn-k", "3", "--output", str(out),
    )  # fmt: skip
    assert [entry["evaluator"] for entry in found] == ["zeroshot", "linear_probe", "knn"]
    zeroshot, probe, _ = found
    assert zeroshot["count"] == {"images": 30, "classes": 10, "templates": 1} and zeroshot["chance"]["top1"] == 0.1
    assert probe["metrics"]["top1"] > 0.9  # even a random tower tells colors apart
    against = zeroshot["against"]
    assert against["metrics"]["top1"] - zeroshot["metrics"]["top1"] == pytest.approx(
        against["differences"]["top1"]["difference"]
    )
    low, high = zeroshot["intervals"]["top1"]
    assert low <= zeroshot["metrics"]["top1"] <= high
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 30 and {"image", "label", "prediction", "best", "scores"} <= set(lines[0])
    right = sum(line["label"] == line["prediction"] for line in lines) / 30
    assert right == pytest.approx(zeroshot["metrics"]["top1"])
    page = (out / "report.html").read_text()
    assert "Most frequent confusions" in page and "nearest neighbours" in page
    assert main(["evaluate", "--pretrained", models[0], "--imagenet-val", photos, "--output", str(out)]) == 2


def test_paddlemix_lays_names_and_prompts_beside_the_images(tmp_path, models, capsys):
    class_folders(tmp_path / "set" / "images", 1)
    (tmp_path / "set" / "labels.txt").write_text("\n".join(f"the color {name}" for name in sorted(COLORS)))
    (tmp_path / "set" / "templates.txt").write_text("a photo of {}.\nsome {}\n")
    found = evaluated(capsys, "--pretrained", models[0], "--imagenet-val", str(tmp_path / "set"))[0]
    assert found["count"]["templates"] == 2 and found["name"] == "set/images"
    assert all(name.startswith("the color ") for name, _ in found["per_class"])


def test_imagenet_folders_are_named_by_themselves(tmp_path, models, capsys):
    for wnid, color in (("n01440764", "red"), ("n01443537", "blue")):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        (tmp_path / "val" / wnid / "1.png").write_bytes(png(color))
    found = evaluated(capsys, "--pretrained", models[0], "--imagenet-val", str(tmp_path / "val"), "--templates", "cc")[
        0
    ]
    assert {name for name, _ in found["per_class"]} == {"tench", "goldfish"}


def test_the_table_shows_intervals_and_differences(tmp_path, models, capsys):
    lines = [json.dumps({"image": f"{name}.png", "caption": f"a {name} thing"}) for name in COLORS]
    for name in COLORS:
        (tmp_path / f"{name}.png").write_bytes(png(name))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    words = ["--pretrained", models[0], "--against", models[0], "--val-data", str(tmp_path / "pairs.jsonl")]
    assert main(["evaluate", "--device", "cpu", *words]) == 0
    said = capsys.readouterr().out
    assert "95 % interval" in said and "+0.00" in said and "text_to_image_R@1" in said


def test_a_probe_without_a_test_set_is_one_clear_line(tmp_path, models, capsys):
    assert main(["evaluate", "--pretrained", models[0], "--val-data", "x.csv", "--probe-train", "y"]) == 2
    assert "tested on --imagenet-val" in capsys.readouterr().err
