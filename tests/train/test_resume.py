"""Resumed runs equal uninterrupted ones bit by bit; what cannot be resumed is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diptych.distributed import checkpoint
from diptych.errors import ConfigError
from diptych.train.config import read
from diptych.train.loop import train

from .runs import argv, assert_identical, losses, run, tensors

FASTCLIP = ["--objective", "fastclip", "--scale-lr", "3e-4", "--repeated-captions", "ignored"]


@pytest.mark.heavy
@pytest.mark.parametrize("more", [[], ["--precision", "bf16"], ["--accum-freq", "2"], FASTCLIP])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(pairs, tmp_path, more):
    # 23 pairs in batches of 4 are 5 steps an epoch: stopping at 3 and at 8 is in the middle of two different epochs.
    run(pairs, tmp_path / "whole", "--max-steps", "11", *more)
    assert not run(pairs, tmp_path / "parts", "--max-steps", "11", "--stop-after", "3", *more).finished
    assert not run(pairs, tmp_path / "parts", "--resume", "latest", "--stop-after", "5", *more).finished
    assert run(pairs, tmp_path / "parts", "--resume", "latest", "--max-steps", "11", *more).finished
    assert_identical(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert [step for step, _ in losses(tmp_path / "parts")] == list(range(1, 12))


def test_the_estimates_of_fastclip_are_in_checkpoints_one_for_each_record(pairs, tmp_path):
    for name, more in (("whole", []), ("parts", ["--stop-after", "6"])):
        run(pairs, tmp_path / name, "--max-steps", "11", *FASTCLIP, *more)
    run(pairs, tmp_path / "parts", "--resume", "latest")
    whole, parts = (
        checkpoint.load(checkpoint.path_of(tmp_path / name / "checkpoints", 11)) for name in ("whole", "parts")
    )
    assert whole["weights"]["log_u"].shape == (2, 23) and whole["weights"]["seen"].sum() > 20
    for name in ("log_u", "seen"):
        assert torch.equal(whole["weights"][name], parts["weights"][name])


@pytest.mark.heavy
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
    run(pairs, tmp_path / "b", "--max-steps", "1", "--lr", "1e-30", "--wd", "0", "--pretrained", str(tmp_path / "a"))
    one, other = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert all(torch.allclose(item, other[name], rtol=0, atol=1e-20) for name, item in one.items())


@pytest.mark.heavy
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


def test_latest_in_an_empty_folder_starts_a_run_and_says_so(pairs, tmp_path, capsys):
    assert run(pairs, tmp_path / "a", "--max-steps", "2", "--resume", "latest").finished
    assert "starting a new run" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="in which folder"):
        train(read(["--train-data", pairs, "--batch-size", "4", "--resume", "latest"], program="diptych train"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--seed 3", r"--seed 0 -> 3 would change the order"),
        ("--dataset-resampled", r"--dataset-resampled False -> True would change the order"),
        ("--captions all", r"--captions random -> all would change the order"),
    ],
)
def test_what_would_change_the_order_is_refused(pairs, tmp_path, flags, expected):
    run(pairs, tmp_path / "a", "--max-steps", "4", "--stop-after", "2")
    with pytest.raises(ConfigError, match=expected):
        run(pairs, tmp_path / "a", "--resume", "latest", *flags.split())


def test_other_data_is_refused(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "4", "--stop-after", "2")
    lines = Path(pairs).read_text().splitlines(keepends=True)
    other = Path(pairs).with_name("other.jsonl")
    other.write_text("".join(lines))  # the same under another name
    run(pairs, tmp_path / "a", "--resume", "latest", "--stop-after", "1", "--train-data", str(other))
    for changed, expected in (
        (lines[:-1], "23 records then, 22 now"),
        ([*lines[1:], lines[0]], "but others, or in another order"),
    ):
        other.write_text("".join(changed))
        with pytest.raises(ConfigError, match=expected):
            run(pairs, tmp_path / "a", "--resume", "latest", "--train-data", str(other))


def test_another_edition_of_the_order_is_refused(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "4", "--stop-after", "2")
    path = checkpoint.path_of(tmp_path / "a" / "checkpoints", 2)
    state = checkpoint.load(path)
    state["data"]["order"] = 1
    torch.save(state, tmp_path / "old.pt")
    (tmp_path / "old.pt").replace(path)
    with pytest.raises(ConfigError, match="edition 1 of the order"):
        run(pairs, tmp_path / "a", "--resume", "latest")


def test_what_may_change_is_said_in_one_line(pairs, tmp_path, capsys):
    run(pairs, tmp_path / "a", "--max-steps", "4", "--stop-after", "2")
    capsys.readouterr()
    run(
        pairs,
        tmp_path / "a",
        "--resume",
        "latest",
        "--batch-size",
        "5",
        "--lr",
        "2e-3",
        "--workers",
        "1",
        "--max-steps",
        "3",
    )
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resuming")]
    assert "at step 2, with changes: " in line
    assert (
        all(part in line for part in ("--batch-size 4 -> 5", "--lr 0.001 -> 0.002", "--max-steps 4 -> 3"))
        and "workers" not in line
    )


def test_going_back_keeps_what_is_new_and_sets_aside_what_is_later(pairs, tmp_path, capsys):
    folder = tmp_path / "a"
    flags = ("--max-steps", "8", "--save-every-steps", "2", "--keep-checkpoints", "3")
    run(pairs, folder, *flags)
    assert checkpoint.steps(folder / "checkpoints") == [4, 6, 8]
    early = checkpoint.path_of(folder / "checkpoints", 4)
    run(pairs, folder, *flags, "--resume", str(early), "--stop-after", "1")
    assert checkpoint.steps(folder / "checkpoints") == [4, 5]
    assert sorted(path.name for path in (folder / "checkpoints").glob("aside_*")) == [
        "aside_step_00000006.pt", "aside_step_00000008.pt",
    ]  # fmt: skip
    assert "set aside" in capsys.readouterr().err
    assert run(pairs, folder, *flags, "--resume", "latest", "--stop-after", "1").steps == 6


def test_steps_of_another_size_change_the_length_of_epochs_and_are_refused(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--epochs", "2", "--stop-after", "3")
    with pytest.raises(ConfigError, match="a step of 4 pairs would have 8, so --epochs would be of another length"):
        run(pairs, tmp_path / "a", "--resume", "latest", "--batch-size", "8")


def test_pairs_are_counted_as_they_were(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "4", "--stop-after", "2")
    run(pairs, tmp_path / "a", "--resume", "latest", "--batch-size", "5")
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [row["pairs"] for row in rows if row["phase"] == "train"] == [4, 8, 13, 18]


def test_a_last_validation_that_was_lost_is_made_up(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "2", "--val-data", pairs)
    (tmp_path / "a" / "results.json").unlink()  # as when the process was killed while it validated
    run(pairs, tmp_path / "a", "--resume", "latest", "--val-data", pairs)
    assert (tmp_path / "a" / "results.json").exists()


@pytest.mark.heavy
def test_a_signal_or_the_clock_asks_for_a_checkpoint_and_the_run_goes_on(pairs, tmp_path):
    folder = tmp_path / "a"
    flags = argv(pairs, folder, "--max-steps", "100000", "--save-every-minutes", "0.05", "--keep-checkpoints", "0")
    process = subprocess.Popen([sys.executable, "-m", "diptych", "train", *flags], stderr=subprocess.PIPE, text=True)

    def wait_for_checkpoints(count):
        deadline = time.time() + 90
        while time.time() < deadline and len(checkpoint.steps(folder / "checkpoints")) < count:
            time.sleep(0.05)
        return len(checkpoint.steps(folder / "checkpoints"))

    assert wait_for_checkpoints(1) >= 1  # after three seconds
    before = len(checkpoint.steps(folder / "checkpoints"))
    process.send_signal(signal.SIGUSR1)
    assert wait_for_checkpoints(before + 1) > before
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "stopped and saved" in err and "Traceback" not in err
