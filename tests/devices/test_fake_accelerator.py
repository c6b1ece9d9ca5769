"""The whole conformance suite on an accelerator that is not CUDA and that the source has never heard of.

``fake/`` holds it as a vendor would ship it: a compiled plug-in for PyTorch's PrivateUse1 device type and one file with a
``Device``. It runs in processes of its own, through the command line, by the way that third parties have: ``module:Class``.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.world import write_images

FAKE = Path(__file__).parent / "fake"
SOURCE = Path(__file__).parents[2] / "src" / "diptych"
NAME = "fakeacc:FakeAccelerator"
DRIVER = """
import json, sys, torch
from diptych.commands import main
code = main(["selftest", "--device", "fakeacc:FakeAccelerator:1", "--json"])
from diptych.devices import get_device
current = str(get_device("fakeacc").torch_device)
try:
    mixed = str(torch.ones(3, 3) @ torch.ones(3, 3, device="fakeacc"))
except RuntimeError as error:
    mixed = str(error)
print(json.dumps({"operators": torch.ops.fakeacc.operators(), "two devices": mixed, "current": current}))
sys.exit(code)
"""

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        sys.platform != "linux" or shutil.which("g++") is None,
        reason="the simulated accelerator is compiled with g++ on Linux",
    ),
]


def run(*argv: str, **more: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(FAKE), str(SOURCE.parent)])  # this tree's package, whichever is installed
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=environment, timeout=280)


@pytest.fixture(scope="module")
def selftest():
    """Exit code, report, and the operators that the plug-in ran."""
    done = run("-c", DRIVER)
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 2, done.stderr
    return done.returncode, *map(json.loads, lines)


def test_the_whole_suite_passes(selftest):
    code, report, _ = selftest
    failed = [(row["name"], row["detail"]) for row in report["rows"] if row["outcome"] == "failed"]
    assert not failed
    assert code == 0
    assert report["passed"]


def test_nothing_is_skipped_but_what_the_device_does_not_claim(selftest):
    report = selftest[1]
    assert [row["name"] for row in report["rows"] if row["outcome"] == "skipped"] == [
        "equal runs are equal",
        "unequal lengths in one kernel, bf16",
        "unequal lengths in one kernel, fp16",
        "AdamW, fused",
    ]
    assert report["abilities"]["fused_adamw"] is False
    assert report["matmul"] == "default"


def test_both_tower_families_train_in_every_precision(selftest):
    names = [row["name"] for row in selftest[1]["rows"]]
    for model in ("tiny-test", "tiny-test-resnet"):
        assert [f"two steps of {model}, {precision}" in names for precision in ("fp32", "bf16", "fp16")] == [True] * 3


def test_the_work_was_done_on_the_second_accelerator(selftest):
    _, report, seen = selftest
    assert report["device"] == "fakeacc:1"
    needed = {"aten::addmm", "aten::upsample_bicubic2d", "aten::_softmax", "aten::nll_loss_forward", "aten::bmm"}
    assert needed <= set(seen["operators"])


def test_a_tensor_left_on_the_host_is_refused_as_on_real_hardware(selftest):
    assert "on the same device" in selftest[2]["two devices"]


def test_the_accelerator_that_a_program_selected_before_stays_current(selftest):
    assert selftest[2]["current"] == "fakeacc:1"


def test_its_collectives_are_the_plugins_own(selftest):
    rows = {row["name"]: row["outcome"] for row in selftest[1]["rows"]}
    assert rows["collectives, fakeccl"] == "passed"


def test_two_processes_take_the_step_that_one_takes(tmp_path):
    script = str(FAKE / "two_processes.py")
    alone = run(script, "cpu")
    both = run("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script, NAME)
    single, double = (json.loads(done.stdout.strip().splitlines()[-1]) for done in (alone, both))
    assert (double["size"], double["device"]) == (2, "fakeacc:0")
    assert double["losses"] == pytest.approx(single["losses"], rel=1e-5)


@pytest.mark.parametrize("more", [[], ["--micro-batch", "4"]], ids=["plain", "micro-batches"])
def test_a_run_pads_texts_to_lengths_of_its_data_and_gives_the_losses_of_groups(tmp_path, more):
    data = unequal_captions(tmp_path)
    losses = {}
    for device in ("cpu", NAME):
        folder = tmp_path / device.partition(":")[0]
        flags = (
            f"--model tiny-test --device {device} --precision fp32 --batch-size 8 --workers 1 --max-steps 2 --lr 1e-3"
        )
        output = f"--train-data {data} --output {folder} --log-every-n-steps 1 --val-data {data}"
        done = run("-m", "diptych", "train", *flags.split(), *output.split(), *more)
        assert done.returncode == 0, done.stderr
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[device] = [row["loss"] for row in rows if row["phase"] in ("train", "eval")]
    assert re.search(r"texts are padded to [\d,]*77 tokens \(chosen from the lengths of 24 captions\)", done.stderr)
    assert re.search(r'text_buckets = "[\d,]*77"', (folder / "config.toml").read_text())
    assert len(losses["cpu"]) == 3
    assert losses[NAME] == pytest.approx(losses["cpu"], rel=1e-5)


def unequal_captions(folder):
    """24 pairs with captions of 3 to 26 tokens."""
    names = write_images(folder, 24)
    rows = [{"image": name, "captions": [" ".join(["dog"] * (number + 1))]} for number, name in enumerate(names)]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_source_has_no_special_case_for_it():
    for path in SOURCE.rglob("*.py"):
        assert not re.search(r"fakeacc|fakeccl|privateuse", path.read_text(encoding="utf-8").lower()), path
