"""The make-believe accelerator as a vendor would ship it: a plug-in, and a device entry for Diptych in one file.

Importing this compiles ``fakeacc.cpp`` (about 15 seconds, kept in ``build/`` until the source or PyTorch changes), loads
it, and gives PyTorch's PrivateUse1 device type the name "fakeacc". ``--device fakeacc:FakeAccelerator`` then reaches it.
PyTorch has one such type per process, so the tests import this only in processes of their own.
"""

import hashlib
import os
import subprocess
import types
from pathlib import Path

import torch

from diptych.devices import DEVICES, Device

HERE = Path(__file__).parent
SOURCE = HERE / "fakeacc.cpp"


def build(compiler: str = "g++") -> Path:
    """Compile the plug-in unless it is there already, and return the library's path."""
    root = Path(torch.__file__).parent
    stamp = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = HERE / "build" / f"fakeacc-{stamp}.so"
    if library.exists():
        return library
    library.parent.mkdir(exist_ok=True)
    unfinished = library.with_suffix(f".{os.getpid()}.tmp")
    includes = [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}"]
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = [compiler, "-std=c++20", "-O1", "-w", "-fPIC", "-shared", abi, *includes, str(SOURCE), "-o", str(unfinished)]
    subprocess.run([*command, f"-L{root / 'lib'}", "-lc10", "-ltorch", "-ltorch_cpu"], check=True)
    unfinished.replace(library)
    return library


torch.ops.load_library(str(build()))
plugin = torch.ops.fakeacc


class Module(types.ModuleType):
    """``torch.fakeacc``: the functions that PyTorch asks of an accelerator's module."""

    is_available = staticmethod(lambda: True)
    is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: plugin.device_count())
    current_device = staticmethod(lambda: plugin.current_device())
    set_device = staticmethod(lambda index: plugin.set_device(index))
    synchronize = staticmethod(lambda device=None: None)
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


@DEVICES.register("fakeacc")
class FakeAccelerator(Device):
    """An accelerator that Diptych's source has never heard of."""

    name = "fakeacc"
    backend = "fakeccl"
