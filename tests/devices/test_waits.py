"""In the steady state nothing makes the host wait for the device: counted on the fake accelerator, by ``fake/waits.py``.

0 between two rows of the metric log, in one process and in two; in evaluation none in a batch.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.world import write_jsonl
from tests.objectives.worlds import EXAMPLES

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).parent / "fake"
RUN = "--model tiny-test --batch-size 4 --workers 0 --save-frequency 0 --log-every-n-steps 10 --max-steps 31"
QUICK = ("clip-0", "siglip-0", "fastclip-0", "slip-0")
HARD = "--precision fp16 --grad-clip-norm 1 --on-nonfinite skip:3 --ema 0.99 --ema-warmup"

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which("g++") is None,
        reason="the simulated accelerator is compiled with g++ on Linux",
    ),
]


def counted(*argv, processes=1, **more):
    """What ``waits.py`` prints."""
    path = os.pathsep.join(map(str, (FAKE, ROOT / "src", ROOT)))
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else []
    command = [sys.executable, *start, str(FAKE / "waits.py"), *map(str, argv)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def assert_steady(reports):
    assert reports
    for name, report in reports.items():
        assert report["between"] == 0, (name, report["lines"])
        copies, waits, recorded = report["streams"]
        assert copies and waits and recorded  # batches came on a stream of their own, from page-locked memory


def test_steps_never_make_the_host_wait():
    assert_steady(counted("steps", *QUICK))


@pytest.mark.slow
def test_no_objective_makes_the_host_wait():
    assert_steady(counted("steps", *sorted(set(EXAMPLES) - set(QUICK))))


@pytest.mark.slow
def test_a_value_that_is_read_in_a_step_is_counted():
    report = counted("steps", "clip-0", READS="1")["clip-0"]
    assert report["between"] == report["steps"] == 4 and "read_value" in report["lines"][0][0]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon", "sgd"])
def test_no_optimizer_makes_the_host_wait(optimizer):
    assert_steady(counted("steps", "clip-0", OPTIMIZER=optimizer))


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--precision fp32", f"{HARD} --accum-freq 2"])
@pytest.mark.parametrize("processes", [1, 2])
def test_between_two_rows_a_run_never_waits(flags, processes, tmp_path):
    pairs = write_jsonl(tmp_path / "data")
    report = counted("run", tmp_path / "run", pairs, *RUN.split(), *flags.split(), processes=processes)
    assert report["steps"] == 20
    assert_steady({flags: report})
    assert 0 < report["rows"] <= 20  # of two rows: losses, norms, and which steps were taken


@pytest.mark.slow
def test_a_checkpoint_waits_once_for_its_copy_and_not_for_each_tensor(tmp_path):
    flags = "--precision fp32 --async-save --save-every-steps 10"
    report = counted("run", tmp_path / "run", write_jsonl(tmp_path / "data"), *RUN.split(), *flags.split())
    assert_steady({flags: report})
    assert report["rows"] <= 12  # of two rows, and two of each of two checkpoints: are they finite, are they copied


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_an_evaluation_waits_for_no_batch(processes, tmp_path):
    pairs = write_jsonl(tmp_path / "data")
    report = counted("evaluate", tmp_path / "run", pairs, processes=processes)
    assert all(count > 1 for count in report["batches"].values()) and len(report["batches"]) == 3
    assert report["per batch"] == 1, report["lines"]  # the mean of the losses, once a pass
