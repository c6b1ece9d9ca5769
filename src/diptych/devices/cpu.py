"""The CPU: always there, one per process, and the reference that every accelerator is tested against.

Left to itself it computes in bf16 where it has units for that (three times as fast there, slower elsewhere), else in
fp32. It needs no plug-in and no page-locked memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

import torch
from torch import Tensor

from diptych.devices import DEVICES
from diptych.devices._base import Device

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's numbers of its malloc options


@DEVICES.register("cpu")
class Cpu(Device):
    """The CPU of this machine."""

    name = "cpu"
    fused_adamw = True
    indexed = False

    def select(self, index: int) -> None:
        """There is one; any index is it, because processes under torchrun share it."""
        self.torch_device = torch.device("cpu")

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Autocast takes both half types."""
        return dtype in (torch.bfloat16, torch.float16)

    def pins_memory(self) -> bool:
        """Never: there is nowhere to copy to."""
        return False

    def default_precision(self) -> str:
        """bf16 on a CPU with units for it, else fp32."""
        # torch names these tests privately and knows them only on x86; where it does not answer, fp32 is safe.
        tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return "bf16" if any(test() for test in tests if test is not None) else "fp32"

    def memory(self) -> dict[str, int]:
        """Bytes of this process in RAM: ``peak`` since it started, and ``total`` of the machine."""
        try:
            import resource
        except ImportError:  # Windows has no such module
            return {}
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"peak": peak, "total": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}

    def reset_peak_memory(self) -> None:
        """The operating system keeps the peak; it cannot be reset."""

    def prepare_process(self) -> None:
        """Have freed memory kept rather than given back to the system (glibc only).

        A step frees and takes again the same gigabytes. Given back, they come again as untouched pages, each of which
        costs a fault: up to a fifth of a bf16 step of ViT-B-32 (benchmarks/race).
        """
        with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library: nothing to set
            set_option = ctypes.CDLL(None).mallopt
            for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 1 << 28)):
                set_option(option, value)

    def seed(self, number: int) -> None:
        """Seed PyTorch's generator of the CPU, and only it."""
        torch.default_generator.manual_seed(number)

    def random_state(self) -> Tensor:
        """The state of PyTorch's CPU generator."""
        return torch.get_rng_state()

    def set_random_state(self, state: Tensor) -> None:
        """Go back to what ``random_state`` gave."""
        torch.set_rng_state(state)
