"""Two real processes of torchrun, found by a mark in their environment, signaled, waited for; a run of which one is killed.

No tests; those are in ``test_faults`` and wherever a command of several processes is tried.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.train.runs import argv, assert_identical, losses

TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    "--monitor-interval",
    "0.2",
]
MARK = "DIPTYCH_TEST_OF_FAULTS"


def started(command, mark):
    """The processes of a command, found again by a mark in their environment."""
    environment = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def process_of_rank(rank, mark):
    """The id of the process that trains as this rank, None while there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            values = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in values and f"RANK={rank}".encode() in values:
            return int(folder.name)
    return None


def wait_for(condition, limit=240.0):
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "the run did not come so far"
        time.sleep(0.05)


def assert_killing_changes_nothing(pairs, folder, rank, flags, steps):
    """A run of which process ``rank`` is killed after so many logged steps ends as an undisturbed one. Its folder and output.

    ``flags`` hold ``--resume auto``; the undisturbed run is in ``folder / "whole"``, the killed one in ``folder / "killed"``.
    """
    train = [*TORCHRUN, "--max-restarts", "2", "-m", "diptych", "train"]
    whole, killed, mark = folder / "whole", folder / "killed", f"{folder.name} {rank}"
    undisturbed = started([*train, *argv(pairs, whole, *flags)], f"whole {mark}")
    output, _ = undisturbed.communicate(timeout=600)
    assert undisturbed.returncode == 0, output[-2000:]
    disturbed = started([*train, *argv(pairs, killed, *flags)], mark)
    wait_for(lambda: (killed / "metrics.jsonl").exists() and len(losses(killed)) >= steps)
    os.kill(process_of_rank(rank, mark), signal.SIGKILL)
    output, _ = disturbed.communicate(timeout=600)
    assert disturbed.returncode == 0, output[-2000:]
    assert_identical(killed, whole)
    assert losses(killed) == losses(whole)  # each step once
    return output
