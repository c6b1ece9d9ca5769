"""Every script of examples/ runs as its first lines say, on colored squares that it learns to name."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from diptych import weights
from diptych.models import create_model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "black": (12, 10, 14)}
SHADES = 8
TRAIN = "--model tiny-test --batch-size 16 --lr 3e-3 --warmup 5 --workers 0 --device cpu --aug-scale 0.9 1.0"


# Scripts in one process, which imports torch once, each as a program of its own: __main__, argv, exit code.
PROGRAM = """
import contextlib, io, json, runpy, sys
outputs = []
for script, argv in json.load(sys.stdin):
    sys.argv, output = [script, *argv], io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                sys.exit(f"{script}: exit code {stop.code}")
    outputs.append(output.getvalue())
json.dump(outputs, sys.stdout)
"""


def run(*jobs: tuple[str, str], cwd: Path, **environment: str) -> list[str]:
    """What each script, given as (file, arguments), prints."""
    given = [(str(EXAMPLES / script), shlex.split(argv)) for script, argv in jobs]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(given), capture_output=True, text=True, check=False, cwd=cwd,
        env=os.environ | environment | {"PYTHONPATH": os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])},
        timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Class folders of colored squares with a caption beside each, and a Markdown gallery of them."""
    folder = tmp_path_factory.mktemp("examples")
    lines = ["# Squares", ""]
    for name, color in COLORS.items():
        (folder / "squares" / name).mkdir(parents=True)
        (folder / "classes" / name).mkdir(parents=True)
        for shade in range(SHADES):
            image = Image.new("RGB", (32, 32), tuple(max(0, channel - 4 * shade) for channel in color))
            path = folder / "squares" / name / f"{shade}.png"
            image.save(path)
            image.save(folder / "classes" / name / f"{shade}.png")
            path.with_suffix(".txt").write_text(f"a photo of a {name} square.\n")
            lines.append(f"![a {name} square]({path.relative_to(folder)})")
    (folder / "gallery.md").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def printed(world):
    """All scripts, run in the order in which a reader would: name -> what it printed."""
    weights.save(world / "emoji" / "model.safetensors", create_model("emoji-64"))
    names = " ".join(f"'{name} square'" for name in COLORS)
    jobs = {
        "fine-tune": ("fine_tune_folder.py", f"squares --output tuned {TRAIN} --epochs 30"),
        "zero-shot by names": ("zero_shot_folder.py", f"classes --weights tuned --classes {names}"),
        "zero-shot by folders": ("zero_shot_folder.py", "classes --weights tuned"),
        "retrieval by text": ("retrieval.py", "classes 'a photo of a blue square.' --weights tuned --top 8"),
        "retrieval by image": ("retrieval.py", "classes classes/red/0.png --weights tuned --top 3"),
        "scores": ("image_text_scores.py", ""),
        "data format": ("own_data_format.py", f"gallery.md {TRAIN} --epochs 1 --output gallery"),
        "loss": ("own_loss.py", f"--train-data squares {TRAIN} --epochs 30 --smoothing 0.2 --output smoothed"),
    }
    assert {script for script, _ in jobs.values()} == {path.name for path in EXAMPLES.glob("*.py")}
    return dict(zip(jobs, run(*jobs.values(), cwd=world, WEIGHTS="emoji"), strict=True))


@pytest.mark.heavy
def test_fine_tuning_on_a_folder_leaves_weights_and_a_report(world, printed):
    files = {path.name for path in (world / "tuned").iterdir()}
    assert {"model.safetensors", "report.html", "config.toml"} <= files
    assert json.loads(printed["fine-tune"].splitlines()[-1])["finished"]


def test_zero_shot_names_the_images_that_fine_tuning_taught(printed):
    lines = printed["zero-shot by names"].splitlines()
    assert len(lines) == len(COLORS) * SHADES
    correct = sum(line.split("\t")[1].split()[0] == Path(line.split("\t")[0]).parent.name for line in lines)
    assert correct / len(lines) > 0.9


def test_zero_shot_takes_class_folders_and_prints_the_accuracy(printed):
    accuracy = re.fullmatch(r"accuracy (\d\.\d{3}) of 32 images", printed["zero-shot by folders"].splitlines()[-1])
    assert accuracy and float(accuracy[1]) > 0.5


def test_retrieval_ranks_images_by_text_and_by_image(printed):
    by_text = [Path(line.split("\t")[1]).parent.name for line in printed["retrieval by text"].splitlines()]
    assert len(by_text) == 8 and by_text.count("blue") >= 7
    score, path = printed["retrieval by image"].splitlines()[0].split("\t")
    assert Path(path).parent.name == "red" and float(score) == pytest.approx(1, abs=2e-3)


def test_scores_of_images_and_texts_are_probabilities(printed):
    rows = re.findall(r"probabilities \[(.*)\]", printed["scores"])
    assert len(rows) == 4
    assert all(sum(map(float, row.split())) == pytest.approx(1, abs=0.03) for row in rows)


@pytest.mark.usefixtures("printed")
def test_a_data_format_of_ones_own_trains(world):
    assert (world / "gallery" / "model.safetensors").is_file()


@pytest.mark.usefixtures("printed")
def test_a_loss_of_ones_own_trains(world):
    log = (world / "smoothed" / "metrics.jsonl").read_text()
    losses = [float(value) for value in re.findall(r'"loss": ([\d.]+)', log)]
    assert losses and losses[-1] < losses[0]


def test_every_script_is_short_and_listed():
    scripts = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert len(scripts) >= 6
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in scripts:
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 80
        assert f"[{name}]({name})" in listed
