"""Faults, done for real: processes that are killed under torchrun, and starts that fail again and again.

One command line serves the first start and every restart: ``--resume auto``.
"""

import os
import re
import signal
import time
from dataclasses import replace

import pytest

from diptych.distributed.watch import Seen, verdict
from tests.data.world import write_jsonl
from tests.train.runs import argv, losses

from .torchrun import TORCHRUN, assert_killing_changes_nothing, process_of_rank, started, wait_for

JOIN_AT_LAST = """
import os
from diptych.devices import get_device
from diptych.distributed import process_group
world = process_group.start(get_device("cpu"), timeout=120)
if os.environ["TORCHELASTIC_RESTART_COUNT"] != "20":
    os._exit(3)
os.write(1, f"joined {process_group.size()}\\n".encode())  # at once: two processes share the terminal
process_group.stop()
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_changes_nothing(tmp_path, rank):
    flags = ["--max-steps", "24", "--save-every-steps", "4", "--keep-checkpoints", "0", "--resume", "auto"]
    output = assert_killing_changes_nothing(write_jsonl(tmp_path / "data"), tmp_path, rank, flags, steps=10)
    assert "[rank" not in output  # no traceback of the process that was left


@pytest.mark.slow
def test_twenty_failed_starts_in_a_row_do_not_hang(tmp_path):
    script = tmp_path / "join.py"
    script.write_text(JOIN_AT_LAST)
    process = started([*TORCHRUN, "--max-restarts", "20", str(script)], "starts")
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0 and output.count("joined 2") == 2, output[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_is_named_with_its_phase(tmp_path, rank):
    pairs, folder, mark = write_jsonl(tmp_path / "data"), tmp_path / "a", f"stopped{rank}"
    flags = argv(pairs, folder, "--max-steps", "100000", "--dist-timeout", "10", "--log-every-n-steps", "1")
    run = started([*TORCHRUN, "--max-restarts", "0", "-m", "diptych", "train", *flags], mark)
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(losses(folder)) >= 3)
    stopped = process_of_rank(rank, mark)
    os.kill(stopped, signal.SIGSTOP)
    since = time.monotonic()
    lines = []
    for line in run.stdout:
        if "has not answered" in line:
            lines.append(line)
            break
    assert time.monotonic() - since < 10 + 5
    assert re.fullmatch(
        rf"diptych: rank {rank} has not answered for 10 s; it was in: (loading data|training step). The run ends; .*\n",
        lines[0],
    )
    os.kill(stopped, signal.SIGKILL)
    rest, _ = run.communicate(timeout=300)
    assert run.returncode != 0 and "has not answered" not in rest
    stacks = (folder / f"stacks.rank{1 - rank}.txt").read_text()
    assert f"rank {rank} has not answered" in stacks and "Thread 0x" in stacks


def test_a_process_that_others_wait_for_is_named():
    now, limit = 100.0, 10.0
    working = Seen(beat=50, phases=7, phase="training step", beat_since=99.5, phase_since=80.0)
    assert verdict({0: working, 1: replace(working)}, now, limit) == ""  # however long a step takes
    behind = replace(working, phases=6, phase="loading data")
    assert verdict({0: working, 1: behind}, now, limit) == (
        "rank 1 has been in one phase for 10 s, and others wait for it: loading data"
    )
    assert verdict({0: working, 1: replace(behind, phase_since=95.0)}, now, limit) == ""
    assert verdict({0: working, 1: replace(behind, beat_since=91.0)}, now, limit) == ""  # it may be stopped
    silent = replace(working, beat_since=89.0)
    assert verdict({0: working, 1: silent}, now, limit) == "rank 1 has not answered for 10 s; it was in: training step"


@pytest.mark.slow
def test_what_is_wrong_on_every_process_is_said_once(tmp_path):
    pairs = write_jsonl(tmp_path / "data")
    flags = argv(pairs, tmp_path / "a", "--sharding", "stage2", "--sharding-parallel-degree", "3")
    run = started([*TORCHRUN, "-m", "diptych", "train", *flags], "said")
    output, _ = run.communicate(timeout=300)
    assert run.returncode != 0
    assert output.count("diptych: --sharding-parallel-degree 3: 2 processes are no whole number of groups of 3") == 1
