"""The command line as a user meets it: help, tables, JSON, and mistakes answered in one line with exit code 2."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from diptych import weights
from diptych.commands import COMMANDS, main
from diptych.models import create_model, list_models
from tests.data.world import write_csv, write_jsonl

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model_file(tmp_path):
    weights.save(tmp_path / "w" / "model.safetensors", create_model("tiny-test"))
    return str(tmp_path / "w")


def run(*argv):
    return subprocess.run([sys.executable, "-m", "diptych", *argv], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", COMMANDS.names())
def test_help_begins_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"Example: diptych {name}" in re.sub(r"\s+", " ", shown)


def test_the_overview_lists_every_command(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS.names())


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["trian"], "unknown command 'trian'. Did you mean 'train'?"),
        (["train", "--modle", "x"], "unknown flag '--modle'. Did you mean '--model'?"),
        (["train", "--model", "ViT-B32", "--train-data", "x.csv"], "Did you mean 'ViT-B-32'?"),
        (["train", "--model", "tiny-test"], "--train-data is missing"),
        (["train", "--model", "tiny-test", "--train-data", "none.csv"], "none.csv: no such file"),
        (["train", "--recipe", "emojy"], "Did you mean 'emoji'?"),
        (["train", "--recipe", "none.toml"], "no such file: none.toml"),
        (["train", "--lr", "fast"], "could not convert string to float: 'fast'"),
        (["evaluate"], "--pretrained"),
        (["evaluate", "--pretrained", "none"], "nothing to measure on"),
        (["evaluate", "--pretrained", "none", "--val-data", "x.csv"], "x.csv: no such file"),
        (["models", "--match", "Vit-B-33"], "unknown architecture"),
        (["report", "none"], "no metrics.jsonl or results.json here"),
        (["selftest", "--device", "cudda"], "Did you mean"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(argv, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("diptych: ")


def test_debug_shows_the_traceback():
    result = run("--debug", "train", "--model", "nope", "--train-data", "x.csv")
    assert "Traceback" in result.stderr
    assert run("train", "--model", "nope", "--train-data", "x.csv").stderr.count("\n") == 1


def test_a_csv_without_the_named_column_prints_those_it_saw(tmp_path, capsys):
    path = tmp_path / "x.csv"
    path.write_text("url,words\na,b\n")
    assert main(["train", "--model", "tiny-test", "--train-data", str(path), "--output", str(tmp_path / "o")]) == 2
    assert "columns seen: url, words" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_models_lists_sizes_as_a_table_and_as_json(capsys):
    assert main(["models", "--match", "ViT-L-14*", "--json"]) == 0
    rows = {row["model"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["ViT-L-14"]["parameters"] == 427_616_513
    assert (rows["ViT-L-14"]["image_parameters"], rows["ViT-L-14"]["text_parameters"]) == (303_966_208, 123_650_304)
    assert rows["ViT-L-14-quickgelu"]["activation"] == "quickgelu"
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in list_models())
    assert "427.62" in shown


def test_evaluate_measures_pairs_and_class_folders(model_file, tmp_path, capsys):
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), color).save(tmp_path / "classes" / name / "1.png")
    data = [
        "--val-data",
        write_jsonl(tmp_path / "d"),
        "--imagenet-val",
        str(tmp_path / "classes"),
        "--templates",
        "simple",
    ]
    assert main(["evaluate", "--pretrained", model_file, *data, "--json", "--workers", "0", "--device", "cpu"]) == 0
    retrieval, zeroshot = json.loads(capsys.readouterr().out)
    assert retrieval["count"] == {"images": 23, "texts": 23}
    assert zeroshot["count"] == {"images": 2, "classes": 2, "templates": 1}
    assert 0 <= zeroshot["metrics"]["top1"] <= 1
    assert main(["evaluate", "--pretrained", model_file, *data, "--workers", "0", "--device", "cpu"]) == 0
    assert "chance" in capsys.readouterr().out


def test_evaluate_paired_takes_rows_as_they_are(model_file, tmp_path, capsys):
    path = Path(write_csv(tmp_path))
    path.write_text(path.read_text() + "img/00.png,another caption of the first\n")
    for protocol, images in (("grouped", 23), ("paired", 24)):
        flags = ["--val-data", str(path), "--protocol", protocol, "--json", "--workers", "0", "--device", "cpu"]
        assert main(["evaluate", "--pretrained", model_file, *flags]) == 0
        (entry,) = json.loads(capsys.readouterr().out)
        assert entry["count"]["texts"] == 24
        assert entry["chance"]["text_to_image_R@1"] == pytest.approx(1 / images)


def test_an_open_clip_command_runs_unchanged(tmp_path, capsys):
    """The training command of source 004, with only the program's name, the paths and the sizes changed."""
    path = write_csv(tmp_path)
    command = (
        f"--model tiny-test --save-frequency 1 --zeroshot-frequency 1 --report-to tensorboard --train-data {path} "
        f"--val-data {path} --csv-img-key filepath --csv-caption-key title --csv-separator , --warmup 10 --batch-size 8 "
        "--lr 1e-3 --wd 0.1 --epochs 2 --workers 1 --seed 0 --local-loss --gather-with-grad --device cpu --precision amp_bf16"
    )
    assert main(["train", *command.split(), "--logs", str(tmp_path / "logs"), "--name", "run"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4
    assert {"model.safetensors", "report.html", "tensorboard"} <= {
        item.name for item in (tmp_path / "logs" / "run").iterdir()
    }


def test_the_report_can_be_written_again(tmp_path, capsys):
    pairs = write_jsonl(tmp_path / "d")
    flags = ["--train-data", pairs, "--batch-size", "8", "--max-steps", "2", "--workers", "0", "--device", "cpu"]
    assert main(["train", "--model", "tiny-test", *flags, "--output", str(tmp_path / "run")]) == 0
    (tmp_path / "run" / "report.html").unlink()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").read_text().lower().startswith("<!doctype html>")


def test_commands_in_the_readme_and_docs_exist():
    line = re.compile(r"^\s*diptych (.+?)(?:\s+#.*)?$", flags=re.MULTILINE)
    commands = [
        command
        for text in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for command in line.findall(text.read_text())
    ]
    assert commands
    for command in commands:
        name, *arguments = command.split()
        assert name in COMMANDS.names(), command
        objective = arguments[arguments.index("--objective") + 1] if "--objective" in arguments else "clip"
        known = {"--help", "--debug", "--recipe", "--config"} | _flags(name, objective)
        for argument in arguments:
            assert not argument.startswith("--") or argument.split("=")[0] in known, f"diptych {command}: no {argument}"


def _flags(name, objective):
    from diptych import config
    from diptych.train.config import tree_for

    options = tree_for(objective) if name == "train" else COMMANDS.get(name).options
    return set(config.flags(options))


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_results_table_is_never_cut_off(monkeypatch, capsys, width):
    from diptych.commands._tables import print_summaries
    from diptych.report import Summary

    monkeypatch.setenv("COLUMNS", str(width))
    metrics = {"image_to_text_R@10": 0.19, "text_to_image_R@10": 0.185}
    print_summaries([Summary("a[b]", metrics, 240.0, 0.02, 8.0, "bf16", 256)])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    for text in ("a[b]", "image_to_text_R@10", "19.00 %", "waiting for data", "bf16", "256"):
        assert text in shown
