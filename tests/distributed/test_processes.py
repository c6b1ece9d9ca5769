"""The helper that runs tests in several processes: it collects, it fails loudly, and it leaves nothing behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diptych.distributed import process_group

from ._processes import run_in_processes

ROOT = Path(__file__).resolve().parents[2]
CALLER = "from tests.distributed.test_processes import *; run_in_processes(2, note_and_wait, {folder!r})"


def ranks():
    world = process_group.world_from_environment()
    return world.rank, world.size, os.getpid()


def fail_on_one():
    if process_group.world_from_environment().rank == 1:
        raise ValueError("on purpose")


def note_and_wait(folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(600)


def alive(pid):
    """Whether a process exists and is not a zombie that nobody has reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


def test_results_come_in_rank_order_from_processes_that_are_gone_afterwards():
    results = run_in_processes(2, ranks)
    assert [result[:2] for result in results] == [(0, 2), (1, 2)]
    assert not any(alive(pid) for _, _, pid in results)


def test_a_failure_in_one_process_is_raised_with_its_traceback():
    with pytest.raises(AssertionError, match=r"process 1 of 2 failed:[\s\S]*ValueError: on purpose"):
        run_in_processes(2, fail_on_one)


@pytest.mark.slow
def test_a_process_that_never_answers_is_a_timeout(tmp_path):
    with pytest.raises(TimeoutError, match=r"processes \[0\] of 1"):
        run_in_processes(1, note_and_wait, str(tmp_path), limit=15)
    assert not any(alive(path.name) for path in tmp_path.iterdir())


@pytest.mark.heavy
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_no_process_outlives_a_caller_that_is_killed(tmp_path):
    command = [sys.executable, "-c", CALLER.format(folder=str(tmp_path))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as caller:
        try:
            wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 120)
        finally:
            caller.kill()
    pids = [path.name for path in tmp_path.iterdir()]
    wait_until(lambda: not any(map(alive, pids)), 30)
