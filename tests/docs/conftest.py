"""The files that the pages speak of, small: photos and lists of them, class folders, a run or two."""

import json
import os
import shutil

import pytest
from PIL import Image

from diptych import weights
from diptych.commands import main
from diptych.models import create_model

COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
COUNT = 12


def _photos(folder):
    """images/NN.png, lists of them in several formats, and class folders under several names."""
    rows = []
    (folder / "images").mkdir()
    for number in range(COUNT):
        name, color = list(COLORS.items())[number % len(COLORS)]
        image = Image.new("RGB", (48, 40), tuple(max(0, channel - 3 * number) for channel in color))
        image.save(folder / "images" / f"{number:02d}.png")
        rows.append(
            {"image": f"images/{number:02d}.png", "captions": [f"a {name} square, shade {number}"], "split": "train"}
        )
        for place in ("class_folders", "photos", "test", "train"):
            (folder / place / name).mkdir(parents=True, exist_ok=True)
            image.save(folder / place / name / f"{number}.png")
    for name in ("photos", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["filepath,title", *(f'{row["image"]},"{row["captions"][0]}"' for row in rows)]
    for name in ("photos", "val"):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    shutil.copytree(folder / "images", folder / "FLICKR8K" / "images")
    split = [row | {"split": "val" if number % 4 == 3 else "train"} for number, row in enumerate(rows)]
    (folder / "FLICKR8K" / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in split))
    gallery = [f"![{row['captions'][0]}]({row['image']})" for row in rows]
    (folder / "gallery.md").write_text("\n".join(gallery) + "\n")


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A folder with everything; tests get a copy."""
    folder = tmp_path_factory.mktemp("pages")
    _photos(folder)
    flags = "--model tiny-test --batch-size 4 --epochs 1 --workers 0 --device cpu --warmup 1"
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main(["train", "--train-data", "photos.csv", *flags.split(), "--output", "runs/a"]) == 0
    finally:
        os.chdir(before)
    shutil.copytree(folder / "runs" / "a", folder / "runs" / "b")
    weights.save(folder / "runs" / "demo" / "model.safetensors", create_model("emoji-64"))
    return folder


@pytest.fixture
def world(template, tmp_path, monkeypatch):
    """A fresh copy of the files, as the working directory."""
    folder = tmp_path / "world"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder
