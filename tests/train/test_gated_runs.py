"""Runs on a device that decides on its steps: one that is not finite is noticed later, and all that is promised of it holds."""

import json

import pytest
import torch

from diptych import log
from diptych.distributed import checkpoint
from diptych.errors import NonFiniteError
from tests.train.runs import run, tensors
from tests.train.test_nonfinite import HOT

QUEUED = ("--device", "tests.train.test_gate:Queued", "--log-every-n-steps", "5")


def report_of(folder):
    (path,) = folder.glob("nonfinite_step_*.json")
    return json.loads(path.read_text())


def last_state(folder):
    (path,) = (folder / "checkpoints").glob("finite_step_*.pt")
    return checkpoint.load(path)


def test_the_report_and_the_weights_before_it_are_those_of_a_host_that_decides(pairs, tmp_path):
    for name, flags in (("host", ()), ("there", QUEUED)):
        with pytest.raises(NonFiniteError, match="stopped before the update"):
            run(pairs, tmp_path / name, *HOT, "--ema", "0.9", *flags)
    assert report_of(tmp_path / "host") == report_of(tmp_path / "there")
    one, other = (last_state(tmp_path / name) for name in ("host", "there"))
    assert (one["step"], one["position"], one["pairs"]) == (other["step"], other["position"], other["pairs"])
    assert all(torch.equal(item, other["weights"][name]) for name, item in one["weights"].items())
    averages = one["step_state"]["average"], other["step_state"]["average"]
    assert averages[0]["updates"] == averages[1]["updates"]
    assert all(torch.equal(item, averages[1]["averages"][name]) for name, item in averages[0]["averages"].items())
    assert log.read_rows(tmp_path / "there" / "metrics.jsonl")[-1]["step"] < report_of(tmp_path / "there")["step"]


def test_as_many_steps_are_left_out_as_where_the_host_decides(pairs, tmp_path):
    for name, flags in (("host", ()), ("there", QUEUED)):
        with pytest.raises(NonFiniteError):
            run(pairs, tmp_path / name, *HOT, "--on-nonfinite", "skip:3", *flags)
    names = [
        sorted(path.name for path in (tmp_path / name).glob("nonfinite_step_*.json")) for name in ("host", "there")
    ]
    assert names[0] == names[1] and len(names[0]) == 4
    for name in names[0]:
        assert (tmp_path / "host" / name).read_text() == (tmp_path / "there" / name).read_text()


def test_a_quiet_run_is_that_of_the_host(pairs, tmp_path):
    run(pairs, tmp_path / "host", "--max-steps", "4")
    run(pairs, tmp_path / "there", "--max-steps", "4", *QUEUED)
    one, other = tensors(tmp_path / "host"), tensors(tmp_path / "there")
    assert all(torch.equal(item, other[name]) for name, item in one.items())
