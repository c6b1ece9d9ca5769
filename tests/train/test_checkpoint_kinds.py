"""Runs with checkpoints as folders, written at once or while training goes on: resumed, converted, kept, damaged, refused."""

import signal
import subprocess
import sys
import time

import pytest
import torch

from diptych import weights
from diptych.commands import main
from diptych.distributed import checkpoint
from diptych.errors import ConfigError, OutputError, WeightsError
from diptych.tensorfiles.manifest import MANIFEST
from tests.distributed.torchrun import TORCHRUN, assert_killing_changes_nothing

from .runs import argv, assert_identical, losses, run, tensors

FOLDERS = ["--checkpoint-kind", "folder"]
ASYNC = ["--async-save"]


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 8
    file.write_bytes(data)


@pytest.mark.heavy
@pytest.mark.parametrize("first", [FOLDERS, [*FOLDERS, *ASYNC], ASYNC], ids=" ".join)
def test_a_run_resumed_from_either_kind_equals_an_uninterrupted_one_bit_by_bit(pairs, tmp_path, first):
    more = ["--ema", "0.9", "--objective", "fastclip", "--scale-lr", "3e-4", "--repeated-captions", "ignored"]
    run(pairs, tmp_path / "whole", "--max-steps", "8", *more)
    run(pairs, tmp_path / "parts", "--max-steps", "8", "--save-every-steps", "1", "--stop-after", "3", *first, *more)
    other = ["--checkpoint-kind", "file" if "folder" in first else "folder"]
    run(pairs, tmp_path / "parts", "--resume", "latest", "--stop-after", "3", *other)
    assert run(pairs, tmp_path / "parts", "--resume", "auto").finished
    assert_identical(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert len(names(tmp_path / "parts")) == 3  # --keep-checkpoints, whatever their kinds
    ends = [checkpoint.load(checkpoint.path_of(tmp_path / name / "checkpoints", 8)) for name in ("whole", "parts")]
    for part in ("position", "pairs", "skipped_steps"):
        assert ends[0][part] == ends[1][part]


def test_weights_are_read_from_a_folder_wherever_weights_are_read(pairs, tmp_path):
    folder = tmp_path / "a"
    run(pairs, folder, "--max-steps", "3", *FOLDERS, *ASYNC)
    expected = tensors(folder)
    (folder / "model.safetensors").unlink()
    step = folder / "checkpoints" / "step_00000003"
    for source in (folder, folder / "checkpoints", step, step / MANIFEST):
        state = weights.load(source).state_dict()
        assert all(torch.equal(state[name], item) for name, item in expected.items())
    assert main(["convert", str(folder), str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert main(["convert", str(step), str(tmp_path / "own")]) == 0
    assert all(torch.equal(item, expected[name]) for name, item in tensors(tmp_path / "own").items())
    other = run(pairs, tmp_path / "b", "--pretrained", str(step), "--max-steps", "4")
    assert other.finished
    flip(step / "rank_00000.safetensors")
    with pytest.raises(WeightsError, match="have changed since it was written"):
        weights.load(folder)


def test_a_damaged_folder_is_passed_over_once_and_named_by_its_path(pairs, tmp_path, capsys):
    folder = tmp_path / "a"
    run(pairs, folder, "--max-steps", "9", "--save-every-steps", "2", "--stop-after", "5", *FOLDERS)
    assert names(folder) == ["step_00000002", "step_00000004", "step_00000005"]
    newest = folder / "checkpoints" / "step_00000005"
    flip(newest / "rank_00000.safetensors")
    capsys.readouterr()
    with pytest.raises(WeightsError, match="not a whole checkpoint"):
        run(pairs, folder, "--resume", str(newest))
    run(pairs, folder, "--resume", "latest", "--stop-after", "1")
    printed = capsys.readouterr().err
    assert printed.count("step_00000005: not a whole checkpoint") == 1
    assert printed.count("instead") == 1 and "resuming" in printed and "at step 4" in printed
    before = folder / "checkpoints" / "step_00000004"
    run(pairs, folder, "--resume", str(before), "--stop-after", "1")  # a path; later ones are set aside
    assert "aside_step_00000005" in names(folder)
    with pytest.raises(ConfigError, match="this folder is no checkpoint"):
        run(pairs, folder, "--resume", str(folder))


def refuse_the_fourth(monkeypatch):
    """A disk that refuses what is written as the checkpoint of step 4."""
    from diptych.distributed import saving

    whole = saving._write_folder

    def refused(folder, step, *arguments, **options):
        if step == 4:
            raise OutputError(f"the checkpoint {folder}/step_00000004 could not be written: No space left on device.")
        whole(folder, step, *arguments, **options)

    monkeypatch.setattr(saving, "_write_folder", refused)


@pytest.mark.parametrize("more", [[], ASYNC], ids=["at once", "pending"])
def test_a_checkpoint_that_cannot_be_written_stops_the_run_or_is_left_out(pairs, tmp_path, monkeypatch, capsys, more):
    refuse_the_fourth(monkeypatch)
    flags = ["--max-steps", "8", "--save-every-steps", "2", *FOLDERS, *more]
    with pytest.raises(OutputError, match="No space left"):
        run(pairs, tmp_path / "a", *flags)
    assert names(tmp_path / "a") == ["step_00000002"] and len(losses(tmp_path / "a")) <= 6
    capsys.readouterr()
    assert run(pairs, tmp_path / "b", *flags, "--on-save-error", "warn").finished
    assert names(tmp_path / "b") == ["step_00000002", "step_00000006", "step_00000008"]
    assert capsys.readouterr().err.count("No space left on device. The run goes on") == 1
    outcome = run(pairs, tmp_path / "c", *flags, "--on-save-error", "warn", "--stop-after", "4")
    assert (outcome.steps, outcome.saved) == (4, 2)  # so that nobody is told that step 4 was saved


def test_an_error_in_the_middle_waits_for_the_pending_checkpoint(pairs, tmp_path, monkeypatch):
    from diptych.distributed import saving
    from diptych.train.job import Job

    whole, validate = saving._write_file, Job.validate

    def slow(*arguments):
        time.sleep(1)
        whole(*arguments)

    def broken(job, done, position):
        raise RuntimeError("validation broke")

    monkeypatch.setattr(saving, "_write_file", slow)
    monkeypatch.setattr(Job, "validate", broken)
    with pytest.raises(RuntimeError, match="validation broke"):
        run(pairs, tmp_path / "a", "--max-steps", "3", "--val-data", pairs, *ASYNC)
    assert names(tmp_path / "a") == ["step_00000003.pt"] and validate is not broken


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_pending_folder(pairs, tmp_path, number):
    folder = tmp_path / "a"
    flags = argv(pairs, folder, "--max-steps", "100000", "--save-every-minutes", "0.05", *FOLDERS, *ASYNC)
    process = subprocess.Popen([sys.executable, "-m", "diptych", "train", *flags], stderr=subprocess.PIPE, text=True)

    def wait_for(count):
        deadline = time.time() + 200
        while time.time() < deadline and len(checkpoint.steps(folder / "checkpoints")) < count:
            time.sleep(0.05)
        return checkpoint.steps(folder / "checkpoints")[-1]

    first = wait_for(1)
    process.send_signal(signal.SIGUSR1)
    assert wait_for(2) > first
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert "stopped and saved" in err and "Traceback" not in err
    path, state = checkpoint.newest(folder / "checkpoints")
    assert state["step"] == losses(folder)[-1][0] and path.is_dir()


@pytest.mark.slow
def test_runs_of_two_processes_and_of_one_resume_each_other_at_the_same_data(pairs, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    batch = ["--max-steps", "10", "--save-every-steps", "5", "--batch-size"]
    run(pairs, whole, *batch, "8")
    command = [*TORCHRUN, "-m", "diptych", "train", *argv(pairs, parts, *batch, "4", "--stop-after", "4", *ASYNC)]
    sharded = subprocess.run([*command, "--sharding", "stage3"], capture_output=True, text=True, timeout=500)
    assert sharded.returncode == 0, sharded.stderr[-2000:]
    assert sorted(path.name for path in (parts / "checkpoints" / "step_00000004").iterdir())[1:] == [
        "rank_00000.safetensors",
        "rank_00001.safetensors",
    ]
    run(pairs, parts, "--resume", "latest", *batch, "8", "--sharding", "none", "--stop-after", "3")
    tensor = [*TORCHRUN, "-m", "diptych", "train", *argv(pairs, parts, *batch, "8", "--resume", "latest")]
    split = subprocess.run([*tensor, "--tensor-parallel-degree", "2"], capture_output=True, text=True, timeout=500)
    assert split.returncode == 0, split.stderr[-2000:]
    for (step, loss), (expected_step, expected) in zip(losses(parts), losses(whole), strict=True):
        assert step == expected_step and loss == pytest.approx(expected, abs=2e-4)
    ends = [checkpoint.load(checkpoint.path_of(folder / "checkpoints", 10)) for folder in (whole, parts)]
    assert ends[0]["position"] == ends[1]["position"] and ends[0]["pairs"] == ends[1]["pairs"] == 80
    assert names(parts)[-1] == "step_00000010"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_of_shards_with_a_pending_checkpoint_changes_nothing(pairs, tmp_path, rank):
    flags = ["--max-steps", "16", "--save-every-steps", "3", "--sharding", "stage2", "--resume", "auto", *ASYNC]
    assert_killing_changes_nothing(pairs, tmp_path, rank, flags, steps=7)
    assert names(tmp_path / "killed") == names(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_of_two_processes_is_one_line(pairs, tmp_path, small_disk):
    disk = small_disk(megabytes=2)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "checkpoints").symlink_to(disk)
    flags = ["--max-steps", "6", "--save-every-steps", "2", "--sharding", "stage2"]
    command = [*TORCHRUN, "-m", "diptych", "train", *argv(pairs, tmp_path / "a", *flags)]
    stopped = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert stopped.returncode and stopped.stderr.count("No space left on device") == 1, stopped.stderr[-3000:]
    run_on = subprocess.run([*command, "--on-save-error", "warn", *ASYNC], capture_output=True, text=True, timeout=500)
    assert run_on.returncode == 0 and (tmp_path / "a" / "model.safetensors").exists(), run_on.stderr[-3000:]
    assert run_on.stderr.count("No space left on device") == 3  # one for each checkpoint
    assert list(disk.iterdir()) == []
