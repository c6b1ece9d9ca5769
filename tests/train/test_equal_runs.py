"""The whole command at the size of a real model: equal runs are equal bit for bit, and a resumed run is the same run.

ViT-B-32 has parameters above torch's grain (32,768 elements), where operators begin to share the work between threads. The
same with more models, precisions and load: ``benchmarks/determinism.py``.
"""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

STEPS = 3


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder, source, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0), random.Random(0)
    vocabulary = ["a", "red", "green", "small", "dog", "cat", "on", "the", "grass", "under", "bright", "evening", "sky"]
    lines = []
    for number in range(24):
        Image.fromarray(source.integers(0, 256, (230, 250, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        caption = " ".join(draw.choices(vocabulary, k=draw.randint(4, 18)))
        lines.append(json.dumps({"image": f"{number}.png", "captions": [caption]}))
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def train(pairs, output, *more):
    flags = (
        f"--model ViT-B-32 --precision fp32 --batch-size 8 --train-data {pairs} --max-steps {STEPS} --warmup 0 --lr 1e-4 "
        f"--workers 1 --device cpu --aug-flip 0.5 --log-every-n-steps 1 --output {output}"
    ).split()
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-m", "diptych", "train", *flags, *more], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr


def state_of(folder):
    """Weights as exported, and all of the last checkpoint: weights, moments, random states."""
    checkpoint = torch.load(folder / f"checkpoints/step_{STEPS:08d}.pt", weights_only=True)
    state = checkpoint["step_state"]["optimizer"]["state"]
    moments = {f"{name} {key}": item for name, own in state.items() for key, item in own.items()}
    exported = {f"exported {name}": item for name, item in load_file(folder / "model.safetensors").items()}
    return {**exported, **checkpoint["weights"], **moments, **checkpoint["random_state"]}


def assert_equal(one, other):
    assert one.keys() == other.keys() and len(one) > 900
    different = [name for name in one if not torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name]))]
    assert not different, f"{len(different)} of {len(one)} tensors differ, {different[0]} first"


@pytest.mark.slow
def test_equal_and_resumed_runs_of_the_whole_command_are_bit_identical(pairs, tmp_path):
    train(pairs, tmp_path / "a")
    expected = state_of(tmp_path / "a")
    train(pairs, tmp_path / "b")
    assert_equal(expected, state_of(tmp_path / "b"))
    train(pairs, tmp_path / "c", "--stop-after", "1")
    train(pairs, tmp_path / "c", "--resume", "latest")
    assert_equal(expected, state_of(tmp_path / "c"))
