"""Every public function that takes a path takes a text, a ``Path`` and anything with ``__fspath__``, and none is forgotten."""

import importlib
import inspect
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych import data, evaluate, files, image, report, text, weights
from diptych.models import create_model

PACKAGES = (diptych, data, image, weights, evaluate, report, text)


class Elsewhere(os.PathLike):
    """A path of some other library."""

    def __init__(self, path):
        self.path = str(path)

    def __fspath__(self):
        return self.path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("paths")
    model = create_model("tiny-test")
    diptych.save(root / "model.safetensors", model)
    for name in ("cat", "dog"):
        (root / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (name == "cat" and "red") or "blue").save(root / "classes" / name / "0.png")
    (root / "labels.txt").write_text("a cat\na dog\n")
    (root / "templates.txt").write_text("one {}.\n")
    (root / "vocab").mkdir()
    (root / "run").mkdir()
    (root / "run" / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    (root / "vocab" / "vocab.json").write_text(json.dumps(own_vocabulary()))
    (root / "vocab" / "merges.txt").write_text("#version: 0.2\n")
    return root


def own_vocabulary():
    from diptych.text._merges import END, START, byte_symbols

    symbols = byte_symbols()[1]
    tokens = [*symbols, *(item + "</w>" for item in symbols), START, END]
    return {token: number for number, token in enumerate(tokens)}


def shape(model):
    return sum(parameter.numel() for parameter in model.parameters())


def written(call):
    """What a writer makes of a path: whether a file is there afterwards."""

    def run(path):
        call(path)
        return Path(path).exists()

    return run


CONFIG = create_model("tiny-test", device="meta").config
WEIGHTS = "model.safetensors"
MAPS = {name: torch.zeros(3, 4) for name in ("image.weight", "image.bias", "text.weight", "text.bias")}
CALLS = {
    ("diptych", "save"): ("new.safetensors", written(lambda path: diptych.save(path, create_model("tiny-test")))),
    ("diptych", "load"): (WEIGHTS, lambda path: shape(diptych.load(path))),
    ("diptych", "get_tokenizer"): (WEIGHTS, lambda path: diptych.get_tokenizer(path)("a cat").tolist()),
    ("diptych", "create_model_and_transforms"): (
        WEIGHTS, lambda path: shape(diptych.create_model_and_transforms("tiny-test", pretrained=path)[0]),
    ),
    ("diptych.weights", "save_state"): (
        "state.safetensors",
        written(lambda path: weights.save_state(path, CONFIG, create_model("tiny-test").state_dict())),
    ),
    ("diptych.weights", "convert"): (
        "converted", lambda path: (weights.convert(Path(path).parent / WEIGHTS, "diptych", path)[1].holds, remove(path)),
    ),
    ("diptych.weights", "inspect_file"): (WEIGHTS, weights.inspect_file),
    ("diptych.weights", "open_clip_state"): (WEIGHTS, lambda path: sorted(weights.open_clip_state(path).tensors)),
    ("diptych.weights", "choose"): (WEIGHTS, lambda path: weights.choose("", path)[0]),
    ("diptych.weights", "create"): (WEIGHTS, lambda path: shape(weights.create("tiny-test", path))),
    ("diptych.weights", "tokenizer_of"): (WEIGHTS, lambda path: weights.tokenizer_of(CONFIG, path).vocab_size),
    ("diptych.weights", "save_vocabulary"): ("run", lambda path: weights.save_vocabulary(CONFIG, "", path)),
    ("diptych.data", "open_source"): ("classes", lambda path: len(data.open_source(path))),
    ("diptych.data", "open_split"): (
        "classes", lambda path: len(data.open_split(path, "", ("val",), data.SourceOptions())),
    ),
    ("diptych.image", "decode"): ("classes/cat/0.png", lambda path: image.decode(path).pixels.tolist()),
    ("diptych.image", "decode_image"): ("classes/cat/0.png", lambda path: np.asarray(image.decode_image(path)).tolist()),
    ("diptych.image", "decode_pixels"): ("classes/cat/0.png", lambda path: image.decode_pixels(path).tolist()),
    ("diptych.image", "pixels_of"): ("classes/cat/0.png", lambda path: image.pixels_of(path).tolist()),
    ("diptych.image", "EvalTransform"): ("classes/cat/0.png", lambda path: image.EvalTransform(4)(path).tolist()),
    ("diptych.weights", "Preprocess"): (
        "classes/cat/0.png", lambda path: weights.Preprocess(image.EvalTransform(4))(path).tolist(),
    ),
    ("diptych.evaluate", "class_folder"): ("classes", evaluate.class_folder),
    ("diptych.evaluate", "class_names"): ("labels.txt", lambda path: evaluate.class_names(["cat", "dog"], path)),
    ("diptych.evaluate", "load_templates"): ("templates.txt", evaluate.load_templates),
    ("diptych.evaluate", "open_labeled"): ("classes", lambda path: len(evaluate.open_labeled(path))),
    ("diptych.evaluate", "open_labeled: labels"): (
        "labels.txt", lambda path: len(evaluate.open_labeled(Path(path).parent / "classes", labels=path)),
    ),
    ("diptych.report", "read_run"): ("run", lambda path: report.read_run(path).name),
    ("diptych.evaluate", "write_token_maps"): (
        "maps.safetensors", written(lambda path: evaluate.write_token_maps(path, MAPS, create_model("tiny-test").state_dict())),
    ),
    ("diptych.report", "write_report"): ("run", lambda path: report.write_report(path).name),
    ("diptych.report", "write_comparison"): (
        "run", lambda path: report.write_comparison([path, path], Path(path) / "both.html").name,
    ),
    ("diptych.text", "get_tokenizer"): (
        "vocab/vocab.json", lambda path: text.get_tokenizer("own", 77, path)("a cat").tolist(),
    ),
    ("diptych.files", "write_text"): ("note.txt", written(lambda path: files.write_text(path, "a"))),
}  # fmt: skip


def remove(path):
    import shutil

    shutil.rmtree(path)


@pytest.mark.parametrize("name", CALLS, ids=".".join)
def test_a_path_may_be_a_text_a_path_or_what_has_fspath(name, folder):
    relative, call = CALLS[name]
    results = [call(kind(folder / relative)) for kind in (str, Path, Elsewhere)]
    assert results[0] == results[1] == results[2]


def takes_a_path(item):
    try:
        parameters = inspect.signature(item).parameters.values()
    except (TypeError, ValueError):
        return False
    return any("Path" in str(parameter.annotation) for parameter in parameters)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda item: item.__name__)
def test_no_public_function_with_a_path_is_forgotten(package):
    """Records and options carry paths as data; everything else that names one is called above."""
    named = {name.partition(":")[0] for _, name in CALLS} | {"Record", "LabeledImages"}
    public = [
        name for name in package.__all__ if takes_a_path(getattr(importlib.import_module(package.__name__), name))
    ]
    assert [name for name in public if name not in named] == []


def test_a_run_takes_paths_among_its_options(tmp_path, folder):
    import dataclasses

    from diptych.train.config import read
    from diptych.train.loop import train
    from tests.data.world import write_jsonl
    from tests.train.runs import argv

    pairs = write_jsonl(tmp_path / "pairs")
    written = read(argv("", "", "--max-steps", "1"), program="diptych train")
    for number, kind in enumerate((str, Path, Elsewhere)):
        output = tmp_path / f"run {number}"
        options = dataclasses.replace(
            written,
            model=dataclasses.replace(written.model, pretrained=kind(folder / WEIGHTS)),
            data=dataclasses.replace(written.data, train_data=kind(pairs)),
            output=dataclasses.replace(written.output, output=kind(output)),
        )
        assert train(options).folder == output
        assert str(pairs) in (output / "config.toml").read_text()
