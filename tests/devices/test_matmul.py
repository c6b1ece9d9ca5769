"""Which library computes fp32 products: decided by the processor and by one product, never on import, never by a clock."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from diptych.devices import DEVICES, get_device
from diptych.devices._matmul import Processor, choose_matmul, product_error, read_processor
from diptych.errors import ConfigError

AVX512 = "fpu sse2 avx2 avx512f avx512dq avx512bw avx512vl"
CPUINFO = {
    "amd": ("AuthenticAMD", f"{AVX512} avx512_bf16"),
    "hygon": ("HygonGenuine", AVX512),
    "amd without avx-512": ("AuthenticAMD", "fpu sse2 avx2"),
    "amd with amx": ("AuthenticAMD", f"{AVX512} amx_bf16 amx_tile"),
    "intel with amx": ("GenuineIntel", f"{AVX512} avx512_bf16 amx_bf16 amx_tile amx_int8"),
    "intel without amx": ("GenuineIntel", AVX512),
}
FAST = ("amd", "hygon")
ARM = "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
EQUAL, TWICE, BFLOAT16 = ({"highest": 2e-7, "medium": error} for error in (2e-7, 4e-7, 2e-3))


@pytest.fixture(autouse=True)
def precision_is_restored():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def processor(tmp_path, name) -> Processor:
    """What ``read_processor`` makes of a /proc/cpuinfo of this kind: two equal cores."""
    vendor, flags = CPUINFO[name]
    core = (
        f"vendor_id\t: {vendor}\ncpu family\t: 25\nmodel name\t: a name: with a colon\nflags\t\t: {flags}\nbugs\t\t:\n"
    )
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\n{core}\nprocessor\t: 1\n{core}\n")
    return read_processor(path)


@pytest.mark.parametrize("name", CPUINFO)
def test_the_choice_follows_vendor_and_instruction_set(tmp_path, name):
    cpu = processor(tmp_path, name)
    assert cpu == Processor(CPUINFO[name][0], frozenset(CPUINFO[name][1].split()))
    assert choose_matmul("auto", cpu, TWICE.__getitem__) == ("fast" if name in FAST else "exact")


def test_arm_and_systems_without_cpuinfo_are_exact(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(ARM)
    assert read_processor(path).flags == {"fp", "asimd", "bf16"}
    assert choose_matmul("auto", read_processor(path), EQUAL.__getitem__) == "exact"
    assert read_processor(tmp_path / "absent") == Processor()
    assert choose_matmul("auto", Processor(), EQUAL.__getitem__) == "exact"


def test_a_product_that_loses_accuracy_gives_exact(tmp_path):
    amd = processor(tmp_path, "amd")
    assert choose_matmul("auto", amd, {"highest": 2e-7, "medium": 7.9e-7}.__getitem__) == "fast"
    assert choose_matmul("auto", amd, {"highest": 2e-7, "medium": 8.1e-7}.__getitem__) == "exact"
    assert choose_matmul("auto", amd, BFLOAT16.__getitem__) == "exact"
    assert choose_matmul("auto", amd, {"highest": 2e-7, "medium": float("nan")}.__getitem__) == "exact"


def test_fast_can_be_forced_but_not_at_the_cost_of_accuracy(tmp_path):
    intel = processor(tmp_path, "intel without amx")
    assert choose_matmul("fast", intel, TWICE.__getitem__) == "fast"
    with pytest.raises(
        ConfigError, match=r"--matmul fast: .* 2e-03 from float64 instead of 2e-07; choose --matmul exact"
    ) as error:
        choose_matmul("fast", intel, BFLOAT16.__getitem__)
    assert "\n" not in str(error.value)


def test_exact_and_default_need_no_product():
    def never(precision: str) -> float:
        raise AssertionError(precision)

    assert choose_matmul("exact", Processor("AuthenticAMD"), never) == "exact"
    assert choose_matmul("default", Processor("AuthenticAMD"), never) == "default"
    with pytest.raises(ConfigError, match="Did you mean 'exact'"):
        choose_matmul("exat")


def test_the_measured_error_is_that_of_fp32_and_leaves_no_trace():
    torch.manual_seed(3)
    state, before = torch.get_rng_state(), torch.get_float32_matmul_precision()
    assert 1e-8 < product_error("highest") < 2e-6
    assert product_error("medium") == product_error("medium")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_float32_matmul_precision() == before


def test_a_bfloat16_product_would_be_noticed(monkeypatch):
    def in_bfloat16(x, w):
        return (x.bfloat16() @ w.bfloat16().t()).to(x.dtype) if x.dtype == torch.float32 else x @ w.t()

    exact = product_error("highest")
    monkeypatch.setattr("diptych.devices._matmul.F.linear", in_bfloat16)
    assert product_error("highest") > 100 * exact


@pytest.mark.parametrize("name", CPUINFO)
def test_the_cpu_sets_what_it_returns(tmp_path, monkeypatch, name):
    processor(tmp_path, name)
    monkeypatch.setattr("diptych.devices._matmul.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("diptych.devices._matmul.product_error", TWICE.__getitem__)
    device = get_device("cpu")
    wanted = "fast" if name in FAST else "exact"
    for option, choice in (("auto", wanted), ("fast", "fast"), ("exact", "exact")):
        assert device.prepare_process(option) == choice
        assert torch.get_float32_matmul_precision() == {"exact": "highest", "fast": "medium"}[choice]
    torch.set_float32_matmul_precision("high")
    assert device.prepare_process("default") == "default"
    assert torch.get_float32_matmul_precision() == "high"


def test_the_choice_on_this_machine_is_the_same_every_time():
    device = get_device("cpu")
    assert len({device.prepare_process() for _ in range(3)}) == 1


def test_the_fast_choice_is_accurate_on_this_machine():
    if get_device("cpu").prepare_process() != "fast":
        pytest.skip("this CPU gains nothing")
    source = torch.Generator().manual_seed(9)
    x, w = torch.randn(100, 3072, generator=source), torch.randn(768, 3072, generator=source)
    wanted = x.double() @ w.double().t()
    error = float((torch.nn.functional.linear(x, w).double() - wanted).norm() / wanted.norm())
    assert error < 2e-6


LIBRARY = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import diptych, diptych.devices, diptych.objectives, diptych.evaluate, diptych.train.step
from diptych.models import create_model
diptych.save(path=Path(sys.argv[1]), model=create_model("tiny-test"))
diptych.load(sys.argv[1])
diptych.devices.get_device("cpu")
print(torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled())
"""


@pytest.mark.heavy
def test_importing_and_loading_leave_the_setting_alone(tmp_path):
    argv = [sys.executable, "-c", LIBRARY, str(tmp_path / "model.safetensors"), sys.path[0]]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["highest", "False"]


@pytest.fixture
def gpu():
    """The class of a GPU that is not there: its settings are torch's, of this process."""
    before = torch.backends.cudnn.allow_tf32
    yield DEVICES.get("cuda").__new__(DEVICES.get("cuda"))
    torch.backends.cudnn.allow_tf32 = before


def settings():
    return torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_a_gpu_computes_fp32_products_and_convolutions_in_tf32_or_exactly(gpu, capsys):
    assert gpu.prepare_process("fast") == "fast" and settings() == ("high", True, True)
    assert "computed in TF32" in capsys.readouterr().err
    assert gpu.prepare_process("exact") == "exact" and settings() == ("highest", False, False)
    assert gpu.prepare_process("fast") == "fast" and settings() == ("high", True, True)


def test_a_gpu_is_left_as_torch_is_set_where_nothing_is_asked(gpu, capsys):
    before = settings()
    assert [gpu.prepare_process(), gpu.prepare_process("auto"), gpu.prepare_process("default")] == ["default"] * 3
    assert settings() == before and capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match="Did you mean 'exact'"):
        gpu.prepare_process("exat")
