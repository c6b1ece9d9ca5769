"""Names that other people's programs and scripts use, and that therefore stay: Python, flags, files of a run.

The list is that of issue 10, section 7. Whatever else is renamed is listed in CHANGELOG.md.
"""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import diptych
from diptych.commands import COMMANDS, main
from tests.data.world import write_jsonl

FLAGS = Path(__file__).parent / "flags.txt"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def finished_run(pairs, tmp_path_factory):
    """The folder of a run of two steps, and what the command printed."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    flags = f"--train-data {pairs} --val-data {pairs} --batch-size 8 --max-steps 2 --workers 0 --device cpu --seed 3"
    command = [
        sys.executable,
        "-m",
        "diptych",
        "train",
        "--model",
        "tiny-test",
        *flags.split(),
        "--output",
        str(folder),
    ]
    result = subprocess.run(
        [*command, "--save-every-steps", "1", "--val-every-steps", "2"], capture_output=True, text=True, check=True
    )
    return folder, json.loads(result.stdout)


@pytest.mark.parametrize(
    "name", ["create_model_and_transforms", "get_tokenizer", "list_models", "list_pretrained", "load", "save"]
)
def test_names_of_the_package(name):
    assert callable(getattr(diptych, name))
    assert name in diptych.__all__


def test_the_package_lists_its_names_sorted_and_documented():
    assert diptych.__all__ == sorted(diptych.__all__)
    for public in diptych.__all__:
        assert getattr(diptych, public).__doc__, public


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, diptych; print(sorted({'torch', 'PIL', 'numpy', 'tyro'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_models_are_created_by_name_and_called_with_images_and_texts():
    from diptych.models import create_model

    model = create_model("tiny-test", device="cpu")
    assert "device" in inspect.signature(create_model).parameters
    size = model.config.vision.image_size
    tokens = diptych.get_tokenizer("tiny-test")(["a photo", "a drawing of a cat"])
    image, text, scale = model(torch.zeros(2, 3, size, size), torch.as_tensor(np.asarray(tokens)))
    assert image.shape == text.shape
    assert len(image) == 2
    assert float(scale.detach()) > 0


def test_a_model_comes_with_its_preprocessing():
    from PIL import Image

    model, train_preprocess, preprocess = diptych.create_model_and_transforms("tiny-test")
    size = model.config.vision.image_size
    assert train_preprocess(Image.new("RGB", (40, 30))).shape == (3, size, size)
    assert preprocess(Image.new("RGB", (40, 30))).shape == (3, size, size)
    assert preprocess.transform(Image.new("RGB", (40, 30))).shape == (3, size, size)


def test_sources_are_opened_by_path(pairs):
    from diptych.data import open_source
    from diptych.image import decode_image

    source = open_source(pairs)
    record = source.record(0)
    assert len(source) == 23
    assert record.captions
    assert decode_image(record.image).mode == "RGB"


def test_class_folders_have_classes(tmp_path):
    from PIL import Image

    from diptych.data import open_source
    from diptych.evaluate import class_names

    for name in ("blue", "red"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 20), name).save(tmp_path / name / "1.png")
    source = open_source(str(tmp_path))
    assert list(source.classes) == ["blue", "red"]
    assert list(class_names(source.classes)) == ["blue", "red"]


def test_a_device_prepares_the_process():
    from diptych.devices import get_device

    assert callable(get_device("cpu").prepare_process)


def listed_flags(command: str) -> list[list[str]]:
    lines = [line.split() for line in FLAGS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [arguments for name, *arguments in lines if name == command]


def test_every_command_of_the_list_exists():
    commands = {line.split()[0] for line in FLAGS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")}
    assert commands <= set(COMMANDS.names())


@pytest.mark.parametrize("switches", ["on", "off"])
@pytest.mark.parametrize("command", COMMANDS.names())
def test_every_flag_of_the_list_parses(command, switches):
    chosen = COMMANDS.get(command)
    negations = [arguments[0] for arguments in listed_flags(command) if arguments[0].startswith("--no-")]
    skipped = {"--" + flag[5:] for flag in negations} if switches == "off" else set(negations)
    argv = [part for arguments in listed_flags(command) if arguments[0] not in skipped for part in arguments]
    if argv:
        chosen.read(command, argv)


def test_the_list_of_flags_is_whole_enough_to_mean_something():
    assert len(listed_flags("train")) > 60
    assert len(listed_flags("evaluate")) > 20


def test_a_run_leaves_files_of_known_names(finished_run):
    folder, printed = finished_run
    assert {"output", "steps", "finished", "results"} <= printed.keys()
    assert (folder / "model.safetensors").is_file()
    assert (folder / "config.toml").is_file()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any({"loss", "learning_rate"} <= row.keys() for row in rows)
    assert {path.stem for path in (folder / "checkpoints").iterdir()} == {"step_00000001", "step_00000002"}
    results = json.loads((folder / "results.json").read_text())
    assert results
    assert all({"name", "metrics", "count"} <= entry.keys() for entry in results)


def test_evaluate_prints_json_and_writes_predictions(finished_run, tmp_path, capsys):
    from PIL import Image

    for name in ("blue", "red"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), name).save(tmp_path / "classes" / name / "1.png")
    folder, output = finished_run[0], tmp_path / "evaluation"
    flags = ["--imagenet-val", str(tmp_path / "classes"), "--workers", "0", "--device", "cpu", "--output", str(output)]
    assert main(["evaluate", "--pretrained", str(folder), *flags, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert {"name", "metrics", "count", "chance"} <= entry.keys()
    assert 0 <= entry["metrics"]["top1"] <= 1
    assert len((output / "predictions.jsonl").read_text().splitlines()) == 2
    assert (output / "results.json").is_file()
