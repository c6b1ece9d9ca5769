"""The scripts for clusters: they are bash, and a run that Slurm cuts into sittings ends with the weights of an undisturbed one.

Slurm itself is not here: ``srun`` and ``scontrol`` are small scripts that do on one machine what is used of them. Everything
else is real: two torchruns that meet, one process each, signals, checkpoints.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.world import write_jsonl
from tests.train.runs import argv, assert_identical, losses

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPTS = sorted(path for folder in ("slurm", "torchrun") for path in (EXAMPLES / folder).iterdir())
LIMIT = 900.0

SRUN = """#!/bin/bash
# As srun: the command once for each machine, signals passed on, the highest exit code.
while [[ $1 == --* ]]; do shift; done
tasks=()
for ((node = 0; node < SLURM_NNODES; node++)); do
    SLURM_NODEID=$node SLURM_PROCID=$node SLURM_LOCALID=0 SLURM_NTASKS=$SLURM_NNODES "$@" &
    tasks+=($!)
done
trap 'kill -TERM "${tasks[@]}" 2>/dev/null' TERM
code=0
for task in "${tasks[@]}"; do
    wait "$task"; own=$?
    while kill -0 "$task" 2>/dev/null; do wait "$task"; own=$?; done
    ((own > code)) && code=$own
done
exit $code
"""

SCONTROL = """#!/bin/bash
case "$1 $2" in
    "show hostnames") printf 'localhost\\nlocalhost\\n' ;;
    requeue*) echo "$2" >> "$REQUEUED" ;;
    *) exit 1 ;;
esac
"""


def test_there_are_scripts_and_bash_reads_them():
    assert [path.name for path in SCRIPTS] == ["train.sbatch", "train.sh"]
    for path in SCRIPTS:
        subprocess.run(["bash", "-n", path], check=True)
        text = path.read_text()
        assert "--resume auto" in text and os.access(path, os.X_OK)


@pytest.fixture
def cluster(tmp_path):
    """The environment of a job on two machines, of which each runs one process."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "2", "PROCESSES": "1"}
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, **job, "PATH": path, "REQUEUED": str(tmp_path / "requeued"), "OMP_NUM_THREADS": "1"}


def sitting(arguments, environment, until=None):
    """Run the job script; at ``until`` () it gets the signal that Slurm sends before the time limit. Exit code and output."""
    command = ["bash", str(EXAMPLES / "slurm" / "train.sbatch"), *arguments]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as job:
        try:
            deadline = time.monotonic() + LIMIT
            while until is not None and not until():
                assert job.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            if until is not None:
                job.send_signal(signal.SIGUSR1)
            output, _ = job.communicate(timeout=LIMIT)
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    return job.returncode, output


@pytest.mark.slow
def test_a_run_in_sittings_of_slurm_equals_an_undisturbed_one(tmp_path, cluster):
    pairs, folder = write_jsonl(tmp_path / "data"), tmp_path / "sittings"
    flags = ["--max-steps", "24", "--keep-checkpoints", "0"]
    code, output = sitting(argv(pairs, tmp_path / "whole", *flags), cluster)
    assert code == 0, output[-3000:]
    given = argv(pairs, folder, *flags)
    code, output = sitting(given, cluster, lambda: (folder / "metrics.jsonl").exists() and len(losses(folder)) >= 3)
    assert code == 0, output[-3000:]
    assert Path(cluster["REQUEUED"]).read_text() == cluster["SLURM_JOB_ID"] + "\n"
    assert output.count("stopped and saved at") == 1 and 3 <= len(losses(folder)) < 24
    code, output = sitting(given, {**cluster, "SLURM_RESTART_COUNT": "1"})
    assert code == 0 and "resuming" in output, output[-3000:]
    assert_identical(folder, tmp_path / "whole")
    assert losses(folder) == losses(tmp_path / "whole")


@pytest.mark.slow
def test_a_chain_of_jobs_goes_on_and_a_finished_run_stays_as_it_is(tmp_path, cluster):
    pairs, folder = write_jsonl(tmp_path / "data"), tmp_path / "chain"
    given = argv(pairs, folder, "--max-steps", "12", "--keep-checkpoints", "0")
    first = {**cluster, "SLURM_ARRAY_TASK_ID": "0"}
    code, output = sitting(given, first, lambda: (folder / "metrics.jsonl").exists() and len(losses(folder)) >= 2)
    assert code == 0 and "stopped and saved at" in output, output[-3000:]
    assert not Path(cluster["REQUEUED"]).exists()  # the next job of the array goes on
    for task in ("1", "2"):
        code, output = sitting(given, {**cluster, "SLURM_ARRAY_TASK_ID": task})
        assert code == 0, output[-3000:]
        assert [step for step, _ in losses(folder)] == list(range(1, 13))
