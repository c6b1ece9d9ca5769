"""The contract of a device, over every registered one, and the messages when one is absent.

The entries "cpu", "cuda", "mps", "npu", "sdaa" and "xpu" run where their hardware is; the CPU always.
"""

import os
import sys

import pytest
import torch

from diptych.devices import DEVICES, PRECISIONS, Abilities, Device, get_device, list_devices
from diptych.errors import ConfigError, DeviceError

BACKENDS = {"cpu": "gloo", "cuda": "nccl", "mps": "gloo", "npu": "hccl", "sdaa": "tccl", "xpu": "xccl"}
PLUGINS = {"npu": "torch_npu", "sdaa": "torch_sdaa"}


class Chip(Device):
    """Somebody else's accelerator, played by the CPU; reached as ``tests.devices.test_devices:Chip``."""

    name = "cpu"
    backend = "chipccl"

    @classmethod
    def count(cls) -> int:
        return 2

    def select(self, index: int) -> None:
        super().select(index)
        self.torch_device = torch.device("cpu")
        self.index = index


class Absent(Device):
    name = "npu"
    plugin = "no_such_plugin"


class Broken(Device):
    name = "npu"
    plugin = "tests.devices.broken_plugin"


CHIP = f"{__name__}:Chip"


@pytest.fixture(params=list(BACKENDS))
def device(request):
    reason = DEVICES.get(request.param).why_absent()
    if reason:
        pytest.skip(reason)
    return get_device(request.param)


def test_every_vendor_has_its_file_and_its_collectives():
    assert list_devices() == sorted(BACKENDS)
    assert {name: DEVICES.get(name).backend for name in BACKENDS} == BACKENDS
    assert {name: DEVICES.get(name).plugin for name in BACKENDS if DEVICES.get(name).plugin} == PLUGINS


@pytest.mark.parametrize("name", BACKENDS)
def test_the_name_is_pytorchs_device_type(name):
    assert DEVICES.get(name).name == name


def test_tensors_live_where_the_device_says(device):
    there = torch.arange(6, device=device.torch_device)
    assert there.device.type == device.name
    device.synchronize()
    assert there.cpu().tolist() == [0, 1, 2, 3, 4, 5]


def test_abilities_are_plain_truths(device):
    assert isinstance(device.abilities, Abilities)
    assert all(isinstance(value, bool) for value in vars(device.abilities).values())
    assert device.default_precision() in PRECISIONS


@pytest.mark.parametrize("precision", PRECISIONS)
def test_autocast_computes_in_the_precision_or_says_that_it_cannot(device, precision):
    claimed = {"fp32": True, "bf16": device.abilities.bfloat16, "fp16": device.abilities.float16}[precision]
    x = torch.ones(4, 4, device=device.torch_device)
    if not claimed:
        with pytest.raises(DeviceError, match=precision):
            device.autocast(precision)
        return
    with device.autocast(precision):
        assert (x @ x).dtype == PRECISIONS[precision]
    assert (x @ x).dtype == torch.float32


def test_an_unknown_precision_names_the_nearest(device):
    with pytest.raises(ConfigError, match="Did you mean 'bf16'"):
        device.autocast("bf61")


def test_the_scaler_works_for_fp16_only(device):
    assert [device.scaler(precision).is_enabled() for precision in ("fp32", "bf16", "fp16")] == [False, False, True]


def test_memory_is_told_in_bytes(device):
    figures = device.memory()
    assert figures
    assert all(isinstance(value, int) and value >= 0 for value in figures.values())
    assert figures["total"] > 10_000_000
    device.reset_peak_memory()


def test_random_state_and_seed_bring_numbers_back(device):
    def draw():
        return torch.rand(8, device=device.torch_device).tolist()

    device.seed(3)
    state = device.random_state()
    first, second = draw(), draw()
    device.set_random_state(state)
    assert draw() == first
    assert first != second
    device.seed(3)
    assert draw() == first
    assert state.device.type == "cpu"


@pytest.fixture
def deterministic_settings():
    """Restores what ``set_deterministic`` changes for the process."""
    fill, cudnn = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    variables = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(variables)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn, False


def without_hardware(name):
    """A device of this class that was never selected: for methods which only change settings of the process."""
    entry = DEVICES.get(name)
    return entry.__new__(entry)


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("cpu", {}),
        ("xpu", {}),
        ("cuda", {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}),
        ("npu", {"HCCL_DETERMINISTIC": "true", "LCCL_DETERMINISTIC": "1", "CLOSE_MATMUL_K_SHIFT": "1"}),
    ],
)
def test_deterministic_mode_is_torchs_with_what_the_device_adds(monkeypatch, deterministic_settings, name, variables):
    for variable in ("CUBLAS_WORKSPACE_CONFIG", "HCCL_DETERMINISTIC", "LCCL_DETERMINISTIC", "CLOSE_MATMUL_K_SHIFT"):
        monkeypatch.delenv(variable, raising=False)
    torch.use_deterministic_algorithms(False)  # the first call of a process sets a variable of the compiler
    before = dict(os.environ)
    without_hardware(name).set_deterministic()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert {key: value for key, value in os.environ.items() if before.get(key) != value} == variables


def test_a_cublas_setting_that_is_not_deterministic_is_refused(monkeypatch, deterministic_settings):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    without_hardware("cuda").set_deterministic()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    torch.use_deterministic_algorithms(False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ConfigError, match="CUBLAS_WORKSPACE_CONFIG=:0:0 is set; unset it"):
        without_hardware("cuda").set_deterministic()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("name", ["mps", "sdaa"])
def test_a_device_without_a_deterministic_mode_refuses_it(name):
    with pytest.raises(ConfigError, match=f"--deterministic: .* {name} .* leave the flag out"):
        without_hardware(name).set_deterministic()
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_devices_compute_fp32_products_as_torch_is_set(capsys):
    device = Chip()
    before = torch.get_float32_matmul_precision()
    assert [device.prepare_process(), device.prepare_process("default")] == ["default", "default"]
    assert capsys.readouterr().err == ""
    assert device.prepare_process("fast") == "default"
    assert "--matmul fast chooses between fp32 products of the CPU or of cuda" in capsys.readouterr().err
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ConfigError, match="unknown matmul 'slow'"):
        device.prepare_process("slow")


def test_seeding_the_cpu_device_touches_the_cpu_generator_alone():
    get_device("cpu").seed(4)
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(4)))


def test_auto_takes_the_cpu_where_nothing_else_answers(monkeypatch):
    for name in BACKENDS:
        if name != "cpu":
            monkeypatch.setattr(DEVICES.get(name), "why_absent", classmethod(lambda cls: "absent"))
    assert get_device("auto").name == get_device().name == "cpu"


def test_auto_takes_the_first_accelerator_that_answers(monkeypatch):
    monkeypatch.setitem(DEVICES._entries, "chip", Chip)
    for name in BACKENDS:
        if name != "cpu":
            monkeypatch.setattr(DEVICES.get(name), "why_absent", classmethod(lambda cls: "absent"))
    assert isinstance(get_device("auto"), Chip)


def test_auto_says_when_an_installed_plugin_is_of_no_use(monkeypatch, capsys):
    monkeypatch.setitem(DEVICES._entries, "broken", Broken)
    monkeypatch.setitem(sys.modules, "tests.devices.broken_plugin", None)
    monkeypatch.setattr(Broken, "installed", classmethod(lambda cls: True))
    for name in BACKENDS:
        if name != "cpu":
            monkeypatch.setattr(DEVICES.get(name), "installed", classmethod(lambda cls: False))
    assert get_device("auto").name == "cpu"
    assert "installed but does not load" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "package"), PLUGINS.items())
def test_a_missing_plugin_is_one_line_that_names_the_package(name, package):
    if DEVICES.get(name).installed():
        pytest.skip(f"{package} is installed")
    with pytest.raises(DeviceError, match=f"--device {name} needs the package {package}") as caught:
        get_device(name)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_plugin_that_does_not_load_says_why(monkeypatch):
    monkeypatch.setattr(Broken, "installed", classmethod(lambda cls: True))
    monkeypatch.setitem(sys.modules, "tests.devices.broken_plugin", None)
    with pytest.raises(DeviceError, match=r"installed but does not load \(.*driver"):
        Broken()


@pytest.mark.parametrize("name", ["cuda", "mps", "xpu"])
def test_an_absent_accelerator_is_one_line_with_advice(name):
    if DEVICES.get(name).why_absent() is None:
        pytest.skip(f"{name} is available")
    with pytest.raises(DeviceError, match=f"sees no {name} accelerator.*--device cpu") as caught:
        get_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cudda", "unknown device 'cudda'. Did you mean 'cuda'"),
        ("gpu", "Known: auto, cpu, cuda, mps, npu, sdaa, xpu"),
        ("npu:first", "expected a number after the colon"),
        ("cpu:1", "there is only one cpu"),
        ("json:JSONDecoder", "expected a subclass of diptych.devices.Device"),
        (f"{CHIP}:2", "sees 2 of them"),
    ],
)
def test_a_wrong_name_is_one_line(name, message):
    with pytest.raises(DeviceError) as caught:
        get_device(name)
    assert message in caught.value.line


def test_a_missing_outside_module_is_one_line():
    with pytest.raises(ConfigError, match="no module 'no_such_lab'"):
        get_device("no_such_lab:Chip")


def test_an_outside_class_works_by_its_path_with_an_index_behind_or_beside():
    assert get_device(CHIP).backend == "chipccl"
    assert get_device(f"{CHIP}:1").index == 1
    assert get_device(CHIP, index=1).index == 1
    assert get_device(f"{CHIP}:1", index=0).index == 1  # what the user wrote wins


def test_the_cpu_ignores_the_rank_that_torchrun_gives():
    assert get_device("cpu", index=3).torch_device == torch.device("cpu")
    assert get_device("cpu:0").torch_device == torch.device("cpu")


def test_a_torch_device_is_a_name_too():
    assert get_device(torch.device("cpu")).name == "cpu"
