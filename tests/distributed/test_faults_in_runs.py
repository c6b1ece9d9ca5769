"""Faults inside of runs, done for real: a process that is stuck, one whose data or loss is bad, damaged checkpoints, signals.

A file that never delivers is a named pipe in the place of an image. What is said is said by one process.
"""

import contextlib
import errno
import os
import re
import signal
import threading
import time

import pytest

from tests.data.world import image_bytes, write_jsonl
from tests.train.runs import argv, assert_identical, losses

from .torchrun import TORCHRUN, process_of_rank, started, wait_for

pytestmark = pytest.mark.slow
TRAIN = [*TORCHRUN, "--max-restarts", "0", "-m", "diptych", "train"]
LIMIT = 600.0


def finished(pairs, folder, *flags, mark="x"):
    """A run of two processes to its end, and what it printed."""
    run = started([*TRAIN, *argv(pairs, folder, *flags)], mark)
    output, _ = run.communicate(timeout=LIMIT)
    return run.returncode, output


def pipe_in_place_of(image):
    image.unlink()
    os.mkfifo(image)


@contextlib.contextmanager
def delivering(pipe, data, before_first):
    """Give every reader of the pipe its bytes, the first one after a call of ``before_first``."""
    ended, waiting = threading.Event(), [before_first]

    def serve():
        while not ended.wait(0.02):
            try:
                end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                assert error.errno == errno.ENXIO  # nobody reads
                continue
            for call in waiting:
                call()
            waiting.clear()
            os.write(end, data)
            os.close(end)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_process_that_is_stuck_is_named_with_its_phase(tmp_path):
    pairs, folder = write_jsonl(tmp_path / "data"), tmp_path / "a"
    code, output = finished(pairs, folder, "--max-steps", "100000", "--stop-after", "1")
    assert code == 0, output[-2000:]
    pipe_in_place_of(tmp_path / "data" / "img" / "17.png")
    flags = ("--max-steps", "100000", "--dist-timeout", "10", "--resume", "auto")
    code, output = finished(pairs, folder, *flags)
    assert code != 0
    (named,) = re.findall(r"^diptych: rank (.) has been in one phase .*$", output, re.MULTILINE)
    line = f"diptych: rank {named} has been in one phase for 10 s, and others wait for it: loading data. The run ends; "
    assert line + "continue it with --resume auto." in output
    stacks = [(folder / f"stacks.rank{rank}.txt").read_text() for rank in (0, 1)]
    assert "read_bytes" in stacks[int(named)] and "read_bytes" not in stacks[1 - int(named)]
    assert "[rank" not in output  # no traceback of a process


def test_what_is_wrong_on_one_process_is_said_once_and_ends_all(tmp_path):
    pairs, folder = write_jsonl(tmp_path / "data"), tmp_path / "a"
    (tmp_path / "data" / "img" / "17.png").write_text("no image")
    code, output = finished(pairs, folder, "--max-steps", "1000", "--bad-samples", "raise")
    assert code != 0 and output.count("diptych: ") == 1, output[-3000:]
    assert output.count("diptych: img/17.png#17: not an image that can be read") == 1
    assert "[rank" not in output


def test_a_loss_that_is_not_finite_on_one_process_ends_all_with_one_line(tmp_path):
    pairs, folder = write_jsonl(tmp_path / "data"), tmp_path / "a"
    name = "tests.distributed.nan_on_one:NaNOnOne"
    code, output = finished(pairs, folder, "--max-steps", "20", "--objective", name)
    assert code != 0 and output.count("diptych: ") == 1, output[-3000:]
    assert len(re.findall(r"^diptych: step 3: the loss is .* stopped before the update", output, re.MULTILINE)) == 1
    assert [step for step, _ in losses(folder)] == [1, 2]
    assert (folder / "checkpoints" / "finite_step_00000002.pt").exists()


@pytest.mark.parametrize("damage", ["flipped bytes", "cut off"])
def test_a_damaged_checkpoint_is_passed_over_and_said_once(tmp_path, damage):
    pairs = write_jsonl(tmp_path / "data")
    flags = ("--max-steps", "6", "--save-every-steps", "2", "--keep-checkpoints", "0", "--resume", "auto")
    code, output = finished(pairs, tmp_path / "whole", *flags)
    assert code == 0, output[-2000:]
    folder = tmp_path / "damaged"
    code, output = finished(pairs, folder, *flags, "--stop-after", "4")
    assert code == 0, output[-2000:]
    newest = folder / "checkpoints" / "step_00000004.pt"
    data = bytearray(newest.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(255 - value for value in data[middle : middle + 4000])
    newest.write_bytes(data if damage == "flipped bytes" else data[:middle])
    code, output = finished(pairs, folder, *flags)
    assert code == 0, output[-2000:]
    assert output.count("not a whole checkpoint") == 1
    assert output.count(f"resuming from {folder / 'checkpoints' / 'step_00000002.pt'} instead") == 1
    assert_identical(folder, tmp_path / "whole")


def test_sigterm_in_the_middle_of_an_evaluation_ends_well(tmp_path):
    pairs, folder, held_out = write_jsonl(tmp_path / "data"), tmp_path / "a", write_jsonl(tmp_path / "val")
    pipe = tmp_path / "val" / "img" / "05.png"
    pipe_in_place_of(pipe)
    flags = ("--max-steps", "100000", "--val-data", held_out, "--val-every-steps", "2")
    run = started([*TRAIN, *argv(pairs, folder, *flags)], "evaluation")

    def signaled():
        wait_for(lambda: len(losses(folder)) == 2)  # it is the validation after the second step that reads
        for rank in (0, 1):
            os.kill(process_of_rank(rank, "evaluation"), signal.SIGTERM)
        time.sleep(1)

    with delivering(pipe, image_bytes(5), signaled):
        output, _ = run.communicate(timeout=LIMIT)
    assert run.returncode == 0, output[-2000:]
    assert output.count("stopped and saved at 3/100000 steps") == 1 and "[rank" not in output
    assert (folder / "checkpoints" / "step_00000003.pt").exists() and (folder / "results.json").exists()


@pytest.mark.parametrize(
    ("processes", "flags"),
    [
        (2, "--sharding stage3 --grad-checkpointing --micro-batch 2"),
        (2, "--model tiny-test-resnet --sharding stage2 --sync-batchnorm"),
        (4, "--sharding stage2 --tensor-parallel-degree 2 --grad-clip-norm 1"),
    ],
)
def test_nothing_of_torchs_is_on_the_terminal(tmp_path, processes, flags):
    pairs = write_jsonl(tmp_path / "data")
    command = [str(processes) if item == "2" and TRAIN[number - 1] == "--nproc_per_node" else item
               for number, item in enumerate(TRAIN)]  # fmt: skip
    more = ["--max-steps", "3", "--save-every-steps", "2", "--val-data", pairs, *flags.split()]
    run = started([*command, *argv(pairs, tmp_path / "a", *more)], "quiet")
    output, _ = run.communicate(timeout=LIMIT)
    assert run.returncode == 0, output[-2000:]
    assert not re.findall(r"^.*(?:Warning|\[rank|torch/).*$|^[WE]\d{4} .*$", output, re.MULTILINE)
