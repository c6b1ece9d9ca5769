"""Whole runs on a small world: what they leave behind, what they learn, and two processes as one."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from diptych import log
from diptych.distributed import checkpoint
from diptych.errors import ConfigError
from diptych.train.loop import Clock
from tests.evaluate.colors import png

from .runs import argv, losses, run, tensors


def test_the_folder_holds_what_is_promised(pairs, tmp_path):
    run(
        pairs,
        tmp_path / "a",
        "--max-steps",
        "3",
        "--val-data",
        pairs,
        "--report-to",
        "tensorboard",
        "--save-every-steps",
        "2",
    )
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"config.toml", "metrics.jsonl", "checkpoints", "model.safetensors", "results.json", "tensorboard"} <= names
    assert checkpoint.steps(tmp_path / "a" / "checkpoints") == [2, 3]
    rows = log.read_rows(tmp_path / "a" / "metrics.jsonl")
    train_row = next(row for row in rows if row["phase"] == "train")
    expected = {
        "loss",
        "learning_rate",
        "logit_scale",
        "pairs_per_second",
        "data_wait",
        "gradient_norm",
        "epoch",
        "time",
    }
    assert expected <= set(train_row)
    eval_row = next(row for row in rows if row["phase"] == "eval")
    assert {"name", "loss", "image_to_text_R@1", "text_to_image_R@10"} <= set(eval_row)
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results[0]["count"] == {"images": 23, "texts": 23}
    assert results[0]["chance"]["text_to_image_R@1"] == pytest.approx(1 / 23)


def test_a_small_model_learns_a_small_world(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "60", "--batch-size", "23", "--val-data", pairs, "--val-frequency", "0")
    assert losses(tmp_path / "a")[-1][1] < 0.7 * losses(tmp_path / "a")[0][1]


def test_a_run_is_never_written_over(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "2")
    before = (tmp_path / "a" / "config.toml").read_bytes()
    with pytest.raises(ConfigError, match="already holds a run"):
        run(pairs, tmp_path / "a", "--max-steps", "3")
    assert (tmp_path / "a" / "config.toml").read_bytes() == before


@pytest.mark.heavy
def test_two_processes_train_as_one(pairs, tmp_path):
    run(pairs, tmp_path / "one", "--max-steps", "5", "--val-data", pairs)
    flags = argv(pairs, tmp_path / "two", "--max-steps", "5", "--batch-size", "2", "--val-data", pairs)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        "0",
        "--standalone",
    ]
    subprocess.run(
        [*launch, "-m", "diptych", "train", *flags],
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for (step, loss), (other_step, other) in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert step == other_step
        assert other == pytest.approx(loss, rel=1e-4)
    for name, item in tensors(tmp_path / "one").items():
        assert torch.allclose(item, tensors(tmp_path / "two")[name], atol=2e-4), name


def test_the_clock_tells_waiting_from_working(monkeypatch):
    now = iter([10.0, 10.03, 10.04])  # asked for data, got it, stepped
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock()
    clock.got_data()
    clock.stepped(8)
    figures = clock.read()
    assert figures["data_wait"] == pytest.approx(0.75)
    assert figures["pairs_per_second"] == pytest.approx(200)


def test_zeroshot_has_a_frequency_of_its_own_and_the_end_leaves_pictures(pairs, tmp_path):
    photos = tmp_path / "set" / "images"
    for place, name in enumerate(("red", "blue", "green", "pink", "cyan")):
        (photos / name).mkdir(parents=True)
        (photos / name / "1.png").write_bytes(png(name, (32 + place, 32)))
    (tmp_path / "set" / "templates.txt").write_text("a {}\n")
    (tmp_path / "set" / "labels.txt").write_text("blue\ncyan\ngreen\npink\nred\n")
    run(pairs, tmp_path / "a", "--val-data", pairs, "--imagenet-val", str(tmp_path / "set"), "--epochs", "4",
        "--zeroshot-frequency", "2", "--val-frequency", "3")  # fmt: skip
    rows = [row for row in log.read_rows(tmp_path / "a" / "metrics.jsonl") if row["phase"] == "eval"]
    epochs = {name: [round(row["epoch"]) for row in rows if row["name"] == name] for name in ("val", "zeroshot")}
    assert epochs == {"val": [3, 4], "zeroshot": [2, 4]}
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert [entry["name"] for entry in results] == ["zeroshot", "val"]
    assert results[0]["count"]["templates"] == 1 and "top5" in results[0]["metrics"]
    titles = [part["title"] for part in json.loads((tmp_path / "a" / "gallery.json").read_text())]
    assert any(title.startswith("Images retrieved by caption") for title in titles)
