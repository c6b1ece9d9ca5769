"""Every script of examples/ runs as its first lines say, in a process of its own, on colored squares that it learns to name."""

import os
import re
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
TRAIN = "--model tiny-test --batch-size 16 --lr 3e-3 --warmup 5 --workers 0 --device cpu --aug-scale 0.9 1.0".split()  # noqa: SIM905


def run(script: str, *argv: str, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *argv],
        capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | environment, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


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
def tuned(world):
    """The run that ``fine_tune_folder.py`` leaves."""
    run("fine_tune_folder.py", "squares", "--output", "tuned", *TRAIN, "--epochs", "30", cwd=world)
    return str(world / "tuned")


def test_fine_tuning_on_a_folder_leaves_weights_and_a_report(tuned):
    assert {"model.safetensors", "report.html", "config.toml"} <= {path.name for path in Path(tuned).iterdir()}


def test_zero_shot_names_the_images_that_fine_tuning_taught(world, tuned):
    names = [f"{name} square" for name in COLORS]
    lines = run("zero_shot_folder.py", "classes", "--weights", tuned, "--classes", *names, cwd=world).splitlines()
    assert len(lines) == len(COLORS) * SHADES
    correct = sum(line.split("\t")[1].split()[0] == Path(line.split("\t")[0]).parent.name for line in lines)
    assert correct / len(lines) > 0.9


def test_zero_shot_takes_class_folders_and_prints_the_accuracy(world, tuned):
    last = run("zero_shot_folder.py", "classes", "--weights", tuned, cwd=world).splitlines()[-1]
    accuracy = re.fullmatch(r"accuracy (\d\.\d{3}) of 32 images", last)
    assert accuracy and float(accuracy[1]) > 0.5


def test_retrieval_finds_images_by_text_and_by_image(world, tuned):
    shown = run("retrieval.py", "classes", "a photo of a blue square.", "--weights", tuned, "--top", "8", cwd=world)
    assert [Path(line.split("\t")[1]).parent.name for line in shown.splitlines()].count("blue") >= 7
    shown = run("retrieval.py", "classes", "classes/red/0.png", "--weights", tuned, "--top", "3", cwd=world)
    score, path = shown.splitlines()[0].split("\t")
    assert Path(path).parent.name == "red" and float(score) == pytest.approx(1, abs=2e-3)


def test_scores_of_images_and_texts(tmp_path):
    weights.save(tmp_path / "run" / "model.safetensors", create_model("emoji-64"))
    shown = run("image_text_scores.py", cwd=tmp_path, WEIGHTS=str(tmp_path / "run"))
    rows = re.findall(r"probabilities \[(.*)\]", shown)
    assert len(rows) == 4
    assert all(sum(map(float, row.split())) == pytest.approx(1, abs=0.03) for row in rows)


def test_a_data_format_of_ones_own_trains(world):
    run("own_data_format.py", "gallery.md", *TRAIN, "--epochs", "1", "--output", "gallery", cwd=world)
    assert (world / "gallery" / "model.safetensors").is_file()


def test_a_loss_of_ones_own_trains(world):
    flags = [*TRAIN, "--epochs", "30", "--smoothing", "0.2", "--output", "smoothed"]
    run("own_loss.py", "--train-data", "squares", *flags, cwd=world)
    log = (world / "smoothed" / "metrics.jsonl").read_text()
    losses = [float(value) for value in re.findall(r'"loss": ([\d.]+)', log)]
    assert losses and losses[-1] < losses[0]


def test_every_script_is_short_listed_and_run():
    scripts = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert len(scripts) >= 6
    here = Path(__file__).read_text(encoding="utf-8")
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in scripts:
        assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 80
        assert f"[{name}]({name})" in listed
        assert f'run("{name}"' in here
