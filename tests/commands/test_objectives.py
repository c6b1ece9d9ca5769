"""``diptych train`` with objectives that bring a teacher or state: help, runs, exact resuming, and what is refused first."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diptych import log, weights
from diptych.commands import main
from diptych.models import create_model, model_config
from tests.data.world import write_csv

COMMAND = (
    "train --train-data pairs.csv --val-data pairs.csv --model tiny-test --batch-size 4 --workers 0 --device cpu --warmup 1 "
    "--epochs 2 --save-every-steps 1 --log-every-n-steps 1"
)
OBJECTIVES = {
    "feature": "--objective distill --distill-model teacher",
    "wide": "--objective distill --distill-model tiny-test-wide --distill-pretrained wide/model.safetensors",
    "relation": "--distill-model tiny-test --distill-pretrained teacher/model.safetensors --local-loss --gather-with-grad",
    "superclip": "--objective superclip",
    "slip": "--objective slip --ssl-width 16 --ssl-dim 8 --ssl-norm layer",
    "declip": "--objective declip --simsiam-width 16 --simsiam-bottleneck 8 --ssl-norm layer --queue-size 11",
    "defilip": "--objective defilip --simsiam-width 16 --ssl-norm none --queue-size 13 --dense-aug --compat",
    "filip": "--objective filip --filip-global-weight 0.5",
    "filip as published": "--objective filip --compat",
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """pairs.csv, and teachers in folders: of the student's width, wider, for larger images, with fewer tokens."""
    folder = tmp_path_factory.mktemp("objectives")
    write_csv(folder)
    config = model_config("tiny-test")
    models = {
        "teacher": config,
        "wide": model_config("tiny-test-wide"),
        "large": replace(config, vision=replace(config.vision, image_size=64)),
        "short": replace(config, text=replace(config.text, context_length=20)),
    }
    for name, architecture in models.items():
        torch.manual_seed(9)
        weights.save(folder / name / "model.safetensors", create_model(architecture))
    return folder


@pytest.fixture
def world(template, tmp_path, monkeypatch):
    shutil.copytree(template, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")


def run(*flags):
    return main(" ".join([COMMAND, *flags]).split())


def refused(capsys, *flags):
    """The line of an error before the first step; the run leaves no steps."""
    assert run(*flags) == 2
    assert not list(Path().rglob("metrics.jsonl"))
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.heavy
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resumed_run_ends_bit_for_bit_as_an_undisturbed_one(world, name):
    assert run(OBJECTIVES[name], "--output a") == 0
    assert run(OBJECTIVES[name], "--output b --stop-after 1") == 0
    assert run("--output b --resume latest") == 0
    assert Path("a/model.safetensors").read_bytes() == Path("b/model.safetensors").read_bytes()
    rows = [
        [(row["step"], row["loss"]) for row in log.read_rows(Path(folder, "metrics.jsonl")) if row["phase"] == "train"]
        for folder in ("a", "b")
    ]
    assert rows[0] == rows[1] and len(rows[0]) > 2


def test_open_clips_flags_choose_its_distillation(world):
    assert run(OBJECTIVES["relation"], "--output a") == 0
    row = next(row for row in log.read_rows(Path("a/metrics.jsonl")) if row["phase"] == "train")
    assert {"contrastive", "relation"} <= row["losses"].keys() if "losses" in row else "relation" in json.dumps(row)


def test_the_weights_of_a_run_are_the_students_alone(world):
    assert run(OBJECTIVES["wide"], "--output a") == 0
    assert weights.load("a").state_dict().keys() == create_model("tiny-test").state_dict().keys()


def test_another_teacher_is_another_run(world, capsys):
    assert run(OBJECTIVES["feature"], "--output a --stop-after 1") == 0
    torch.manual_seed(10)
    weights.save("teacher/model.safetensors", create_model("tiny-test"))
    assert run("--output a --resume latest") == 2
    assert "frozen companion" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--objective distill", "has no teacher; give --distill-model"),
        ("--objective distill --distill-model large", "images of 64 pixels"),
        ("--objective distill --distill-model short", "give --force-context-length 20"),
        (
            "--objective distill --distill-model nowhere",
            "the teacher (--distill-model nowhere, no --distill-pretrained): ",
        ),
        ("--objective distill --distill-model teacher --distill-kind other", "--distill-kind"),
        ("--objective distill --distill-model teacher --distill-weight -1", "at least 0"),
        ("--objective distill --distill-model teacher --lock-image --cache-features", "leave --cache-features out"),
        ("--distill-pretrained teacher", "add --distill-model"),
        ("--distill-model teacher --siglip", "leave --siglip out"),
        ("--distill-model tiny-test", "the teacher (--distill-model tiny-test, no --distill-pretrained): "),
        ("--objective clip --distill-model teacher", "--distill-model"),
        ("--objective superclip --lock-image", "--lock-image locks; leave one of them out"),
        ("--objective superclip --superclip-weight -1", "at least 0"),
        ("--objective slip", "--ssl-norm batch: 4 pairs of a process and step are too few"),
        ("--objective slip --ssl-norm layer --lock-image", "--lock-image locks; leave one of them out"),
        ("--objective slip --ssl-norm group", "--ssl-norm"),
        ("--objective slip --ssl-temperature 0", "--ssl-temperature"),
        ("--objective declip", "--ssl-norm batch: 4 pairs of a process and step are too few"),
        ("--objective declip --ssl-norm layer --queue-size 7", "--queue-size 7: a step enqueues 8 text features"),
        (
            "--objective declip --ssl-norm layer --accum-freq 2 --queue-size 15",
            "--queue-size 15: a step enqueues 16 text",
        ),
        ("--objective declip --declip-views image --second-text augmented", "--second-text augmented goes with"),
        ("--objective defilip --ssl-norm layer --top-k 256", "--top-k"),
        (
            "--objective defilip --ssl-norm layer --dense-aug --declip-views image",
            "--dense-aug compares two text views",
        ),
        ("--objective filip --top-k 0", "--top-k"),
        ("--objective filip --lock-image --cache-features", "leave --cache-features out"),
    ],
)
def test_what_cannot_be_is_one_line_before_the_first_step(world, capsys, flags, message):
    assert message in refused(capsys, flags, "--output a")


@pytest.mark.parametrize(
    ("name", "own", "others"),
    [
        ("distill", ["--distill-model", "--distill-kind"], ["--superclip-weight"]),
        ("superclip", ["--superclip-weight"], ["--distill-kind"]),
        ("slip", ["--ssl-weight", "--ssl-width", "--ssl-norm", "--compat"], ["--queue-size", "--dense-aug"]),
        ("declip", ["--queue-size", "--nn-topk", "--mlm-weight", "--second-text"], ["--ssl-width", "--dense-aug"]),
        ("defilip", ["--queue-size", "--dense-weight", "--dense-aug", "--compat"], ["--ssl-width"]),
        ("filip", ["--filip-global-weight", "--top-k", "--dense-dim", "--compat"], ["--superclip-weight"]),
    ],
)
def test_help_shows_the_objectives_own_options(capsys, name, own, others):
    with pytest.raises(SystemExit):
        main(["train", "--objective", name, "--help"])
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in own) and not any(flag in shown for flag in others)


def test_declips_weights_are_trained_with_their_own_vocabulary(world):
    text = replace(model_config("tiny-test").text, vocab_size=49409, projection_bias=True, width=64, heads=1)
    vision = replace(model_config("tiny-test").vision, width=64, heads=1, norm_tokens=False)
    preprocess = model_config("declip-RN50").preprocess
    config = replace(model_config("tiny-test"), text=text, vision=vision, activation="quickgelu", preprocess=preprocess)
    model = create_model(config)
    weights.save("own/model.safetensors", model)
    path, _ = weights.convert("own/model.safetensors", "declip", "declip")
    flags = f"--pretrained {path} --objective filip --compat --lock-patch-embedding --max-steps 1 --output a"
    command = COMMAND.replace("--model tiny-test ", "").replace("--epochs 2 ", "").replace("--warmup 1 ", "--warmup 0 ")
    assert main([*command.split(), *flags.split()]) == 0
    trained = weights.load("a")
    assert (trained.config.text.vocab_size, trained.config.vision.norm_tokens) == (49409, False)
    assert torch.equal(trained.image.patch_embedding.weight, model.image.patch_embedding.weight)
    assert not torch.equal(trained.text.layers[0].mlp_in.weight, model.text.layers[0].mlp_in.weight)
