"""``diptych evaluate`` on folders as users have them: what is printed, what is written, and two models side by side."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import diptych
from diptych import config, weights
from diptych.commands import COMMANDS, main
from diptych.commands._measure import MeasureOptions, measure, tasks, with_evaluators, write_results
from diptych.evaluate import EVALUATORS, Encoder, Evaluator, Result
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


def evaluated(capsys, *flags):
    assert main(["evaluate", "--device", "cpu", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_two_models_probes_and_a_folder_of_results(tmp_path, models, capsys):
    photos = class_folders(tmp_path / "photos")
    out = tmp_path / "out"
    entries = evaluated(
        capsys, "--pretrained", models[0], "--against", models[1], "--imagenet-val", photos, "--templates", "simple",
        "--probe-train", photos, "--knn-k", "3", "--output", str(out),
    )  # fmt: skip
    assert [entry["evaluator"] for entry in entries] == ["zeroshot", "linear_probe", "knn"]
    zeroshot, probe, _ = entries
    assert zeroshot["count"] == {"images": 30, "classes": 10, "templates": 1} and zeroshot["chance"]["top1"] == 0.1
    assert probe["metrics"]["top1"] > 0.9  # even a random tower separates colors
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
    assert "Most frequent confusions" in page and "nearest neighbors" in page
    assert main(["evaluate", "--pretrained", models[0], "--imagenet-val", photos, "--output", str(out)]) == 2


def test_names_and_prompts_lie_beside_the_images_as_in_paddlemix(tmp_path, models, capsys):
    class_folders(tmp_path / "set" / "images", 1)
    (tmp_path / "set" / "labels.txt").write_text("\n".join(f"the color {name}" for name in sorted(COLORS)))
    (tmp_path / "set" / "templates.txt").write_text("a photo of {}.\nsome {}\n")
    entries = evaluated(capsys, "--pretrained", models[0], "--imagenet-val", str(tmp_path / "set"))
    assert entries[0]["count"]["templates"] == 2 and entries[0]["name"] == "set/images"
    assert all(name.startswith("the color ") for name, _ in entries[0]["per_class"])


def test_imagenet_folders_need_no_class_names(tmp_path, models, capsys):
    for wnid, color in (("n01440764", "red"), ("n01443537", "blue")):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        (tmp_path / "val" / wnid / "1.png").write_bytes(png(color))
    flags = ["--imagenet-val", str(tmp_path / "val"), "--templates", "cc"]
    (entry,) = evaluated(capsys, "--pretrained", models[0], *flags)
    assert {name for name, _ in entry["per_class"]} == {"tench", "goldfish"}


def test_the_table_shows_intervals_and_differences(tmp_path, models, capsys):
    lines = [json.dumps({"image": f"{name}.png", "caption": f"a {name} thing"}) for name in COLORS]
    for name in COLORS:
        (tmp_path / f"{name}.png").write_bytes(png(name))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    flags = ["--pretrained", models[0], "--against", models[0], "--val-data", str(tmp_path / "pairs.jsonl")]
    assert main(["evaluate", "--device", "cpu", *flags]) == 0
    printed = capsys.readouterr().out
    assert "95 % interval" in printed and "+0.00" in printed and "text_to_image_R@1" in printed


def test_a_probe_without_a_test_set_is_a_clear_line(tmp_path, models, capsys):
    assert main(["evaluate", "--pretrained", models[0], "--val-data", "x.csv", "--probe-train", "y"]) == 2
    assert "tested on --imagenet-val" in capsys.readouterr().err


def test_options_of_what_is_not_measured_are_named(tmp_path, models, capsys):
    photos = class_folders(tmp_path / "photos", each=1)
    flags = [
        "evaluate",
        "--pretrained",
        models[0],
        "--imagenet-val",
        photos,
        "--device",
        "cpu",
        "--templates",
        "simple",
    ]
    assert main([*flags, "--captions-per-image", "5", "--protocol", "paired", "--knn-k", "3"]) == 0
    said = capsys.readouterr().err
    assert "--protocol, --captions-per-image: no effect without --val-data" in said
    assert "--knn-k: no effect without --probe-train" in said and "--templates" not in said
    assert main([*flags, "--token-rule", "published"]) == 2
    assert "--token-rule published goes with --token-maps" in capsys.readouterr().err


def test_flags_come_from_the_evaluators_and_all_are_there():
    flags = {"--" + leaf.replace("_", "-") for _, leaf in config.leaves(COMMANDS.get("evaluate").options)}
    known = """--pretrained --model --against --val-data --val-split --imagenet-val --templates --labels --probe-train --knn-k
        --protocol --captions-per-image --batch-size --workers --device --precision --json --output
        --dataset-type --csv-separator --csv-img-key --csv-caption-key --image-root"""
    assert set(known.split()) <= flags


def test_an_evaluator_of_another_file_gets_its_flags_and_runs(tmp_path, models, capsys, monkeypatch):
    """An evaluator needs no edit of any list: a class with the contract, registered, is measured and drawn."""

    @dataclass(frozen=True)
    class CountOptions:
        count_by: int = 1

    class Counts(Evaluator):
        Options = CountOptions
        data = "labeled"
        title = "counts"

        def run(self, encoder, source, options, progress=None):
            return Result(source.name, {"images": len(source) / options.count_by}, {}, {"images": len(source)})

        def predictions(self, result, source):
            yield {"counted": result.count["images"]}

    monkeypatch.setitem(EVALUATORS._entries, "counts", Counts)
    options = with_evaluators(MeasureOptions)
    photos = class_folders(tmp_path / "photos", 1)
    flags = ["--pretrained", models[0], "--imagenet-val", photos, "--count-by", "2", "--templates", "simple"]
    parsed = config.parse(options, [*flags, "--device", "cpu"], program="diptych evaluate")
    measured = measure(parsed, models[0], tasks(parsed))
    assert [item.entry()["evaluator"] for item in measured] == ["zeroshot", "counts"]
    assert measured[1].entry()["name"] == "photos · counts" and measured[1].result.metrics["images"] == 5
    write_results(str(tmp_path / "out"), [item.entry() for item in measured], measured)
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 11 and json.loads(lines[-1]) == {"counted": 10}


@pytest.mark.parametrize(
    "file", ["commands/_measure.py", "commands/evaluate.py", "train/validate.py", "commands/demo.py"]
)
def test_nothing_outside_of_the_folder_names_an_evaluator(file):
    tree = ast.parse((Path(diptych.__file__).parent / file).read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings, and help of flags
    for node in ast.walk(tree):
        texts = []
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            texts = [node.value]
        elif isinstance(node, ast.ImportFrom):
            texts = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            texts = [alias.name for alias in node.names]
        elif isinstance(node, ast.Name | ast.Attribute | ast.arg):
            texts = [getattr(node, "id", getattr(node, "attr", getattr(node, "arg", "")))]
        for name in EVALUATORS.names():
            assert not any(re.search(rf"(?<![a-z]){name}(?![a-z])", text.lower()) for text in texts), (
                file,
                name,
                texts,
            )


@pytest.mark.parametrize("broken", ["--val-data", "--imagenet-val", "--probe-train"])
def test_every_source_gives_a_record_before_weights_are_loaded(tmp_path, capsys, broken):
    folders = {
        flag: class_folders(tmp_path / flag.strip("-"), 1) for flag in ("--imagenet-val", "--probe-train", "--val-data")
    }
    rows = [
        json.dumps({"image": str(path), "caption": "one"}) for path in sorted((tmp_path / "val-data").rglob("*.png"))
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    for path in (tmp_path / broken.strip("-")).rglob("*.png"):
        path.write_bytes(b"nothing")
    flags = [
        part
        for flag, folder in {**folders, "--val-data": str(tmp_path / "pairs.jsonl")}.items()
        for part in (flag, folder)
    ]
    assert main(["evaluate", "--pretrained", str(tmp_path / "none.safetensors"), *flags]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"{broken} " in line and "none of the 10 records tried can be used (10 x not an image that can be read)" in line
    )


def test_an_option_that_no_source_uses_and_a_root_without_its_data_are_errors(tmp_path, capsys):
    photos = class_folders(tmp_path / "photos", 1)
    for flags, expected in (
        (
            ["--csv-columns", "filepath,title"],
            "--csv-columns filepath,title: of no use for photos, only for data of the format csv",
        ),
        (["--val-image-root", "x"], "--val-image-root x: holds the images of --val-data; give that too"),
        (["--imagenet-image-root", "x"], "--imagenet-image-root x: of no use for photos"),
    ):
        assert main(["evaluate", "--pretrained", "none.safetensors", "--imagenet-val", photos, *flags]) == 2
        assert expected in capsys.readouterr().err


def test_weights_cast_to_bf16_give_nearly_the_same_scores_from_features_in_fp32(tmp_path, models, capsys, monkeypatch):
    photos, seen = class_folders(tmp_path / "photos"), {}
    images = Encoder.images

    def watched(self, *arguments):
        features = images(self, *arguments)
        stored = {item.dtype for tower in (self.model.image, self.model.text) for item in tower.parameters()}
        seen[self.precision] = (stored, self.model.logit_scale.dtype, features)
        return features

    monkeypatch.setattr(Encoder, "images", watched)
    flags = ("--pretrained", models[0], "--imagenet-val", photos, "--templates", "simple", "--precision")
    for precision in ("fp32", "pure_bf16"):
        evaluated(capsys, *flags, precision)
    stored, scale, features = seen["pure_bf16"]
    assert stored == {torch.bfloat16} and scale == features.dtype == torch.float32
    assert 1e-4 < float((features - seen["fp32"][2]).norm() / features.norm()) < 0.02
