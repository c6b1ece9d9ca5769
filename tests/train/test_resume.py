"""Resumed runs equal uninterrupted ones bit by bit; what cannot be resumed is refused."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from diptych.distributed import checkpoint
from diptych.errors import ConfigError
from diptych.train.config import read
from diptych.train.loop import train

from .runs import argv, assert_identical, losses, run


@pytest.mark.parametrize("more", [[], ["--precision", "bf16"], ["--accum-freq", "2"]])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(pairs, tmp_path, more):
    # 23 pairs in batches of 4 are 5 steps an epoch: stopping at 3 and at 8 is in the middle of two different epochs.
    run(pairs, tmp_path / "whole", "--max-steps", "11", *more)
    assert not run(pairs, tmp_path / "parts", "--max-steps", "11", "--stop-after", "3", *more).finished
    assert not run(pairs, tmp_path / "parts", "--resume", "latest", "--stop-after", "5", *more).finished
    assert run(pairs, tmp_path / "parts", "--resume", "latest", "--max-steps", "11", *more).finished
    assert_identical(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert [step for step, _ in losses(tmp_path / "parts")] == list(range(1, 12))


def test_a_run_may_resume_with_other_workers_and_from_a_path(pairs, tmp_path):
    run(pairs, tmp_path / "whole", "--max-steps", "7")
    run(pairs, tmp_path / "parts", "--max-steps", "7", "--stop-after", "3")
    path = checkpoint.path_of(tmp_path / "parts" / "checkpoints", 3)
    run(pairs, tmp_path / "parts", "--resume", str(path), "--workers", "2")
    assert_identical(tmp_path / "whole", tmp_path / "parts")


def test_resuming_needs_nothing_but_the_folder(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "4", "--stop-after", "2")
    outcome = train(read(["--output", str(tmp_path / "a"), "--resume", "latest"], program="diptych train"))
    assert (outcome.steps, outcome.total_steps) == (4, 4)


def test_a_lost_step_is_logged_once(pairs, tmp_path):
    run(
        pairs,
        tmp_path / "a",
        "--max-steps",
        "8",
        "--save-every-steps",
        "2",
        "--stop-after",
        "5",
        "--keep-checkpoints",
        "0",
    )
    os.unlink(checkpoint.path_of(tmp_path / "a" / "checkpoints", 5))
    run(pairs, tmp_path / "a", "--resume", "latest")
    assert [step for step, _ in losses(tmp_path / "a")] == list(range(1, 9))


def test_a_changed_model_or_objective_is_refused(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "4", "--stop-after", "2")
    with pytest.raises(ConfigError, match="the model changed"):
        run(pairs, tmp_path / "a", "--resume", "latest", "--model", "tiny-test-resnet")
    with pytest.raises(ConfigError, match=r"the objective changed .local_loss: True in the checkpoint, False now"):
        run(pairs, tmp_path / "a", "--resume", "latest", "--no-local-loss")


def test_pretrained_weights_start_a_new_run(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "2")
    run(pairs, tmp_path / "b", "--max-steps", "1", "--lr", "0", "--wd", "0", "--pretrained", str(tmp_path / "a"))
    assert_identical(tmp_path / "a", tmp_path / "b")


def test_ctrl_c_saves_and_the_run_goes_on(pairs, tmp_path):
    folder = tmp_path / "a"
    flags = argv(pairs, folder, "--max-steps", "100000", "--workers", "1")
    process = subprocess.Popen([sys.executable, "-m", "diptych", "train", *flags], stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 60
    while time.time() < deadline and not ((folder / "metrics.jsonl").exists() and len(losses(folder)) > 5):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "stopped and saved" in err
    assert "Traceback" not in err
    (step,) = checkpoint.steps(folder / "checkpoints")
    assert run(pairs, folder, "--resume", "latest", "--max-steps", str(step + 2)).finished


def test_a_finished_run_is_not_trained_on(pairs, tmp_path):
    folder = tmp_path / "a"
    run(pairs, folder, "--max-steps", "3")
    before = losses(folder)
    (folder / "model.safetensors").unlink()  # as when the disk was full at the very end
    assert run(pairs, folder, "--resume", "latest").steps == 3
    assert losses(folder) == before and (folder / "model.safetensors").exists()
    with pytest.raises(ConfigError, match="3 steps were taken already, more than the 2"):
        run(pairs, folder, "--resume", "latest", "--max-steps", "2")
    assert checkpoint.steps(folder / "checkpoints") == [3]


def test_a_checkpoint_from_before_an_option_was_added_resumes(pairs, tmp_path):
    folder = tmp_path / "a"
    run(pairs, folder, "--max-steps", "4", "--stop-after", "2")
    path = checkpoint.path_of(folder / "checkpoints", 2)
    state = checkpoint.load(path)
    for new in ("norm_before", "pool"):  # came with CLIPA
        del state["architecture"]["vision"][new]
    torch.save(state, tmp_path / "old.pt")  # beside it: what was loaded is mapped from the file
    (tmp_path / "old.pt").replace(path)
    assert run(pairs, folder, "--resume", "latest").finished
