"""The conformance suite passes on the CPU, fails on devices that break a promise, and reports both by its exit code."""

import json

import pytest
import torch

from diptych.commands import main
from diptych.conformance.checks import Check, NotClaimed, outcome
from diptych.conformance.operators import Operator, operators
from diptych.conformance.suite import (
    autocast,
    deterministic,
    memory_figures,
    pinned_copies,
    random_state,
    run_operator,
)
from diptych.conformance.training import adamw, gradient_scaler, smallest_models, two_steps
from diptych.devices import DEVICES, Device, get_device

Cpu = DEVICES.get("cpu")


class Liar(Cpu):
    """A device whose claims and figures are false."""

    def pins_memory(self):
        return True

    def memory(self):
        return {"allocated": 0}

    def set_random_state(self, state):
        pass

    def autocast(self, precision):
        return super().autocast("fp32")

    def scaler(self, precision):
        return torch.amp.GradScaler("cpu", enabled=False)

    def set_deterministic(self):
        pass


class Modest(Cpu):
    """A device that claims nothing."""

    fused_adamw = False
    deterministic = False

    def computes_in(self, dtype):
        return False

    def memory(self):
        return {}


@pytest.fixture(autouse=True)
def settings_are_restored():
    before, fill = torch.get_float32_matmul_precision(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_float32_matmul_precision(before)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def ran(check, device: Device):
    return outcome(Check("group", "name", check), device)


def test_the_suite_passes_on_the_cpu(capsys):
    assert main(["selftest", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert report["matmul"] in ("exact", "fast")
    assert not torch.are_deterministic_algorithms_enabled()
    assert len(report["rows"]) > 55
    assert {row["outcome"] for row in report["rows"]} == {"passed", "skipped"}
    kernels = [f"unequal lengths in one kernel, {kind}" for kind in ("bf16", "fp16")]
    assert [row["name"] for row in report["rows"] if row["outcome"] == "skipped"] == ["pinned copies", *kernels]


@pytest.mark.heavy
def test_a_broken_promise_fails_the_suite_and_says_where(capsys):
    assert main(["selftest", "--device", f"{__name__}:Liar"]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if " failed " in line]
    for what in ("pinned copies", "memory figures", "random state", "autocast, bf16", "gradient scaler"):
        assert any(what in line for line in failed), what
    assert any("passed" in line and "linear" in line for line in lines)


@pytest.mark.parametrize("check", [pinned_copies, memory_figures, random_state, gradient_scaler])
def test_each_lie_is_found_by_its_own_check(check):
    assert ran(check, Liar()).outcome == "failed"


def test_unequal_runs_fail_the_check_of_determinism(monkeypatch):
    drift = iter(range(100))
    gradient = torch.autograd.grad

    def drifting(*args):
        return [gradient(*args)[0] + 1e-3 * next(drift)]

    assert ran(deterministic, get_device("cpu")).outcome == "passed"
    monkeypatch.setattr("torch.autograd.grad", drifting)
    row = ran(deterministic, get_device("cpu"))
    assert (row.outcome, row.detail) == ("failed", "five equal runs differ")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_is_not_claimed_is_skipped(precision):
    device = Modest()
    rows = [
        ran(lambda device: autocast(device, precision), device),
        ran(lambda device: two_steps(device, "tiny-test", precision), device),
        ran(lambda device: adamw(device, fused=True), device),
        ran(gradient_scaler, device),
        ran(memory_figures, device),
        ran(deterministic, device),
    ]
    assert [row.outcome for row in rows] == ["skipped"] * 6
    assert all(row.detail for row in rows)


def test_a_wrong_value_a_wrong_gradient_and_a_crash_are_failures():
    device, x = get_device("cpu"), torch.randn(4, 5)

    def wrong_value(a):
        return a.exp() * (1.0 if a.dtype == torch.float64 else 1.001)

    def wrong_gradient(a):
        value = a.exp()
        return value if a.dtype == torch.float64 else value.detach() + a - a.detach()

    def not_finite(a):
        return a if a.dtype == torch.float64 else a / 0.0

    def crash(a):
        raise NotImplementedError("no kernel for exp")

    rows = {
        function.__name__: ran(lambda device, f=function: run_operator(Operator("exp", f, (x,)), device), device)
        for function in (torch.exp, wrong_value, wrong_gradient, not_finite, crash)
    }
    assert {name: row.outcome for name, row in rows.items()} == {
        "exp": "passed", "wrong_value": "failed", "wrong_gradient": "failed", "not_finite": "failed", "crash": "failed",
    }  # fmt: skip
    assert "forward: error" in rows["wrong_value"].detail
    assert "gradient 0" in rows["wrong_gradient"].detail
    assert "no kernel for exp" in rows["crash"].detail


def test_the_operators_cover_what_the_models_use():
    names = [operator.name for operator in operators()]
    assert len(set(names)) == len(names)
    for word in ("linear", "layer norm", "batch norm", "conv2d", "embedding", "gelu", "quick gelu", "attention, causal",
                 "softmax", "cross entropy", "gather", "argmax", "sort", "normalize", "cat", "pooling", "bicubic",
                 "clamp", "exp", "matmul", "uint8"):  # fmt: skip
        assert any(word in name for name in names), word


def test_the_choice_of_products_is_shown_and_can_be_forced(capsys, monkeypatch):
    monkeypatch.setattr("diptych.conformance.suite.run", lambda device: iter(()))
    for option, precision in (("exact", "highest"), ("fast", "medium")):
        monkeypatch.setattr("diptych.devices._matmul.product_error", {"highest": 2e-7, "medium": 3e-7}.__getitem__)
        assert main(["selftest", "--device", "cpu", "--matmul", option]) == 0
        assert f"fp32 products: matmul {option}, torch precision {precision}" in capsys.readouterr().out
        assert torch.get_float32_matmul_precision() == precision


def test_a_choice_that_loses_accuracy_ends_the_command_before_any_check(capsys, monkeypatch):
    errors = {"highest": 2e-7, "medium": 2e-3}.__getitem__
    monkeypatch.setattr("diptych.devices._matmul.product_error", errors)
    assert main(["selftest", "--device", "cpu", "--matmul", "fast"]) == 2
    assert "--matmul fast: on this CPU a product would be 2e-03" in capsys.readouterr().err


def test_one_small_model_of_each_tower_family_is_trained():
    assert smallest_models() == ["tiny-test", "tiny-test-resnet", "tiny-test-siglip"]


def test_a_check_that_is_not_required_does_not_fail_the_suite():
    def refuse(device):
        raise NotClaimed("not claimed")

    assert ran(refuse, get_device("cpu")).outcome == "skipped"
    row = outcome(Check("group", "name", lambda device: {}["kernel"], required=False), get_device("cpu"))
    assert (row.outcome, row.required) == ("failed", False)
    assert row.detail.startswith("KeyError")


def test_list_shows_for_each_accelerator_whether_it_is_available(capsys):
    assert main(["selftest", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["cpu"] == {"available": True, "reason": None}
    assert set(listed) == {"cpu", "cuda", "mps", "npu", "sdaa", "xpu"}
    assert main(["selftest", "--list"]) == 0
    assert "cpu      available" in capsys.readouterr().out


def test_an_absent_accelerator_is_the_users_mistake(capsys):
    assert main(["selftest", "--device", "gpu"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("diptych: unknown device 'gpu'")
    assert len(message.splitlines()) == 1
