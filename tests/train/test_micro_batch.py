"""--micro-batch cuts the batch and changes nothing else; it goes with --accum-freq, which makes steps larger."""

import subprocess
import sys

import pytest
import torch

from diptych.devices import get_device
from diptych.distributed.process_group import World
from diptych.errors import ConfigError
from diptych.train.config import DataOptions, TrainConfig
from diptych.train.micro_batch import _Finder, largest, with_micro_batch
from tests.objectives.worlds import EXAMPLES, make_objective

from .runs import assert_identical, losses, run

STEPS = ("--max-steps", "3", "--force-patch-dropout", "0.5")


@pytest.mark.heavy
def test_pieces_of_a_batch_are_the_same_step_as_so_many_small_batches(pairs, tmp_path):
    run(pairs, tmp_path / "cut", *STEPS, "--batch-size", "8", "--micro-batch", "2")
    run(pairs, tmp_path / "small", *STEPS, "--batch-size", "2", "--accum-freq", "4")
    assert_identical(tmp_path / "cut", tmp_path / "small")
    run(pairs, tmp_path / "whole", *STEPS, "--batch-size", "8")
    assert losses(tmp_path / "cut") == [
        (step, pytest.approx(loss, abs=1e-5)) for step, loss in losses(tmp_path / "whole")
    ]


def test_it_goes_with_larger_steps(pairs, tmp_path):
    run(pairs, tmp_path / "cut", *STEPS, "--batch-size", "4", "--micro-batch", "2", "--accum-freq", "2")
    run(pairs, tmp_path / "small", *STEPS, "--batch-size", "2", "--accum-freq", "4")
    assert_identical(tmp_path / "cut", tmp_path / "small")


def test_a_size_that_does_not_divide_is_refused(pairs, tmp_path):
    with pytest.raises(
        ConfigError, match="--micro-batch 3: --batch-size 8 is no multiple of it; expected a divisor of 8"
    ):
        run(pairs, tmp_path / "a", *STEPS, "--batch-size", "8", "--micro-batch", "3")
    assert not (tmp_path / "a").exists()


@pytest.mark.heavy
def test_auto_takes_the_largest_that_fits_says_so_and_trains_like_the_number(pairs, tmp_path, capsys):
    budget = ("--micro-batch", "auto", "--memory-budget")
    run(pairs, tmp_path / "auto", *STEPS, "--batch-size", "8", *budget, "80GB")
    assert "--micro-batch auto: 8 of 8 pairs at a time (counted: " in capsys.readouterr().err
    run(pairs, tmp_path / "number", *STEPS, "--batch-size", "8", "--micro-batch", "8")
    assert_identical(tmp_path / "auto", tmp_path / "number")
    assert "micro_batch = 8" in (tmp_path / "auto" / "config.toml").read_text()
    # The number is all that is recorded, so that the run goes on without either flag.
    run(pairs, tmp_path / "auto", *STEPS, "--batch-size", "8", "--max-steps", "4", "--resume", "latest")
    assert len(losses(tmp_path / "auto")) == 4


@pytest.mark.heavy
def test_a_resumed_run_keeps_the_number_that_was_taken(pairs, tmp_path, capsys):
    run(pairs, tmp_path / "a", *STEPS, "--batch-size", "8", "--micro-batch", "2", "--stop-after", "1")
    again = ("--micro-batch", "auto", "--resume", "auto")
    run(pairs, tmp_path / "a", *STEPS, "--batch-size", "8", *again)
    assert "--micro-batch auto: 2 of 8 pairs, as before" in capsys.readouterr().err
    run(pairs, tmp_path / "b", *STEPS, "--batch-size", "8", "--micro-batch", "2")
    assert_identical(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--micro-batch", "auto", "--memory-budget", "1MB"),
            "not even a single pair fits .* add --grad-checkpointing",
        ),
        (("--memory-budget", "8GB"), "--memory-budget goes with --micro-batch auto; add it"),
        (("--micro-batch", "auto", "--memory-budget", "much"), "--memory-budget 'much': expected a number with a unit"),
        (("--micro-batch", "some"), "micro-batch"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(pairs, tmp_path, flags, message):
    with pytest.raises(ConfigError, match=message):
        run(pairs, tmp_path / "a", *STEPS, "--batch-size", "8", *flags)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("most", "expected"), [(0, 0), (1, 1), (5, 4), (7, 6), (12, 12), (99, 12)])
def test_the_largest_divisor_that_fits_is_found(most, expected):
    tried = []
    sizes = [1, 2, 3, 4, 6, 12]
    assert largest(sizes, lambda size: tried.append(size) or size <= most) == expected
    assert len(tried) == len(set(tried)) <= 4


def test_less_memory_gives_smaller_pieces():
    objective = make_objective(EXAMPLES["clip-0"], torch.float32)
    device = get_device("cpu")

    def taken(budget):
        config = TrainConfig(data=DataOptions(batch_size=64), micro_batch="auto", memory_budget=str(budget))
        return with_micro_batch(config, objective, device, "fp32", World()).micro_batch

    now = device.memory()["resident"]
    finder = _Finder(
        TrainConfig(data=DataOptions(batch_size=64), memory_budget="8GB"), objective, device, "fp32", World()
    )
    least = finder.counted(16)
    assert taken(now + least + (8 << 20)) in (16, 32) and finder.counted(64) > finder.counted(32) > least


REFUSED = """
import resource, sys, torch
from diptych.devices import get_device
from diptych.distributed.process_group import World
from diptych.objectives import OBJECTIVES, create_objective
from diptych.models import create_model
from diptych.train.config import DataOptions, TrainConfig
from diptych.train.micro_batch import _Finder
device = get_device("cpu")
objective = create_objective(OBJECTIVES.get("clip").Config(), create_model("tiny-test"))
finder = _Finder(TrainConfig(data=DataOptions(batch_size=4096)), objective, device, "fp32", World())
finder.counts = False
before = [item.clone() for item in objective.parameters()]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
finder._beside = lambda: 0
device.memory = lambda: {}
resource.setrlimit(resource.RLIMIT_AS, (used + (700 << 20),) * 2)
print(finder.largest())
assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, objective.parameters()))
"""


@pytest.mark.slow
def test_sizes_are_tried_until_the_system_refuses_no_more():
    out = subprocess.run(
        [sys.executable, "-c", REFUSED], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    assert 64 <= int(out.split()[-1]) < 4096, out
