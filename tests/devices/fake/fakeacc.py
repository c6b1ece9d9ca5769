"""The simulated accelerator as a vendor would ship it: a plug-in, and a device entry for Diptych in one file.

Importing this compiles ``fakeacc.cpp`` (about 12 seconds, cached in ``build/`` until the source or PyTorch changes), loads
it, and gives PyTorch's PrivateUse1 device type the name "fakeacc". ``--device fakeacc:FakeAccelerator`` then reaches it.
PyTorch has one such type per process, so the tests import this only in processes of their own.
"""

import contextlib
import ctypes
import datetime
import hashlib
import os
import subprocess
import traceback
import types
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
import torch.distributed as dist

from diptych.devices import DEVICES, Device

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "fakeacc.cpp"


def build(compiler: str = "g++") -> Path:
    """Compile the plug-in unless it is cached, and return the library's path."""
    root = Path(torch.__file__).parent
    stamp = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = FOLDER / "build" / f"fakeacc-{stamp}.so"
    if library.exists():
        return library
    library.parent.mkdir(exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}.tmp")
    includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = [
        compiler,
        "-std=c++20",
        "-O1",
        "-w",
        "-fPIC",
        "-shared",
        abi,
        *includes,
        str(SOURCE),
        "-o",
        str(unfinished),
    ]
    subprocess.run([*command, f"-L{root / 'lib'}", "-lc10", "-ltorch", "-ltorch_cpu"], check=True)
    unfinished.replace(library)
    return library


torch.ops.load_library(str(build()))
plugin = torch.ops.fakeacc


class On:
    """``torch.fakeacc.device(index)``: the context in which that device is the current one."""

    def __init__(self, device: int | torch.device) -> None:
        self.index = device if isinstance(device, int) else device.index or 0

    def __enter__(self) -> None:
        self.before = plugin.current_device()
        plugin.set_device(self.index)

    def __exit__(self, *_: object) -> None:
        plugin.set_device(self.before)


class Module(types.ModuleType):
    """``torch.fakeacc``: the functions that PyTorch asks of an accelerator's module."""

    device = On
    is_available = staticmethod(lambda: True)
    is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: plugin.device_count())
    current_device = staticmethod(lambda: plugin.current_device())
    set_device = staticmethod(lambda index: plugin.set_device(index))
    synchronize = staticmethod(lambda device=None: plugin.synchronize())
    manual_seed = manual_seed_all = staticmethod(lambda seed: plugin.seed(seed))
    get_rng_state = staticmethod(lambda device=None: plugin.random_state())
    set_rng_state = staticmethod(lambda state, device=None: plugin.set_random_state(state))
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])
    memory_allocated = staticmethod(lambda device=0: plugin.memory(device)[0])
    max_memory_allocated = staticmethod(lambda device=0: plugin.memory(device)[1])
    reset_peak_memory_stats = staticmethod(lambda device=0: plugin.reset_peak(device))


torch.utils.rename_privateuse1_backend("fakeacc")
torch._register_device_module("fakeacc", Module("torch.fakeacc"))
torch.utils.generate_methods_for_privateuse1_backend()


class Wait(NamedTuple):
    """What made the host wait for the device: its kind, the operator, and the lines of Python that asked, innermost last."""

    kind: str
    what: str
    lines: tuple[str, ...]


@contextlib.contextmanager
def watched() -> Iterator[list[Wait]]:
    """All that makes the host wait within, in the order in which it happens, from every thread."""
    waits: list[Wait] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p)
    def report(kind: bytes, what: bytes) -> None:
        frames = traceback.extract_stack()[:-1]
        lines = tuple(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
        waits.append(Wait(kind.decode(), what.decode(), lines))

    plugin.watch(ctypes.cast(report, ctypes.c_void_p).value)
    try:
        yield waits
    finally:
        plugin.watch(0)


class Collectives(dist.ProcessGroup):
    """The collective library "fakeccl": a plug-in's own backend, as hccl and tccl are; it goes through the host and Gloo."""

    _device_types: ClassVar = [torch.device("fakeacc")]  # where PyTorch puts the bytes of objects that it sends

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: datetime.timedelta) -> None:
        super().__init__(rank, size)
        self.host = dist.ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self) -> str:
        return "fakeccl"

    def _through_host(self, work, lists, options):
        for tensor in (tensor for tensors in lists for tensor in tensors):
            if tensor.device.type != "fakeacc":
                raise ValueError(f"fakeccl moves tensors of fakeacc, not of {tensor.device}")
        plugin.uncounted(True)  # a real library's collectives keep to the device
        try:
            return self._moved(work, lists, options)
        finally:
            plugin.uncounted(False)

    def _moved(self, work, lists, options):
        hosts = [[tensor.cpu() for tensor in tensors] for tensors in lists]
        work(*hosts, options).wait()
        for tensors, results in zip(lists, hosts, strict=True):
            for tensor, result in zip(tensors, results, strict=True):
                tensor.copy_(result)
        done = torch.futures.Future()
        done.set_result(lists[0])
        return torch._C._distributed_c10d._create_work_from_future(done)

    def allreduce(self, tensors, options):
        return self._through_host(self.host.allreduce, [tensors], options)

    def broadcast(self, tensors, options):
        return self._through_host(self.host.broadcast, [tensors], options)

    def allgather(self, gathered, tensors, options):
        def work(host_gathered, host_tensors, options):
            return self.host.allgather([host_gathered], host_tensors, options)

        return self._through_host(work, [gathered[0], tensors], options)

    def barrier(self, opts):  # PyTorch gives it by this name
        return self.host.barrier(opts)


dist.Backend.register_backend("fakeccl", Collectives, devices=["fakeacc"])


@DEVICES.register("fakeacc")
class FakeAccelerator(Device):
    """An accelerator that Diptych's source has never heard of."""

    name = "fakeacc"
    backend = "fakeccl"
