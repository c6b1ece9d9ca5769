"""The CPU: always available, the same one for all processes, and the reference that every accelerator is tested against.

By default it computes in bf16 where it has units for that (three times as fast there, slower elsewhere), else in fp32. It needs
no plug-in and no page-locked memory. Equal runs are equal bit for bit without further settings (docs/determinism.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from diptych import log
from diptych.devices import DEVICES
from diptych.devices._base import Device
from diptych.devices._matmul import PRECISION, Matmul, choose_matmul
from diptych.types import TextForm

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's numbers of its malloc options


@DEVICES.register("cpu")
class Cpu(Device):
    """The CPU of this machine."""

    name = "cpu"
    fused_adamw = True
    deterministic = True
    asynchronous = False
    indexed = False

    def select(self, index: int) -> None:
        """Any index is the same CPU, because processes under torchrun share it."""
        self.torch_device = torch.device("cpu")

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Autocast takes both half types."""
        return dtype in (torch.bfloat16, torch.float16)

    def pins_memory(self) -> bool:
        """Never: there is no other memory to copy to."""
        return False

    def text_layout(self, precision: str, asked: TextForm | Literal["auto"] = "auto") -> TextForm:
        """Groups of equal length, which compute the fewest tokens: a call costs little here. Any other form for the asking."""
        if asked == "varlen":
            log.info(
                "--text-layout varlen: on a CPU its kernel is a loop over the texts, for comparing, not for speed."
            )
        return "groups" if asked == "auto" else asked

    def default_precision(self) -> str:
        """bf16 on a CPU with units for it, else fp32."""
        # torch names these tests privately and knows them only on x86; where it does not answer, fp32 is safe.
        tests = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        return "bf16" if any(test() for test in tests if test is not None) else "fp32"

    def memory(self) -> dict[str, int]:
        """Bytes in RAM: ``peak`` of this process since it started, ``total`` of the machine; on Linux ``free``, what programs may
        still take, and ``resident``, what this process has now.
        """
        try:
            import resource
        except ImportError:  # Windows has no such module
            return {}
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        page = os.sysconf("SC_PAGE_SIZE")
        return {"peak": peak, "total": page * os.sysconf("SC_PHYS_PAGES"), **_linux_memory(page)}

    def reset_peak_memory(self) -> None:
        """Nothing: the operating system counts the peak, and it cannot be reset."""

    def prepare_process(self, matmul: str = "auto") -> Matmul:
        """Keep freed memory in the process (glibc only), and choose the library of fp32 products (see ``_matmul``).

        A step frees and allocates the same gigabytes. Given back to the system, they return as untouched pages, each of
        which costs a fault: up to a fifth of a bf16 step of ViT-B-32 (benchmarks/race). Raises ConfigError for "fast" where
        that would lose accuracy.
        """
        with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library: nothing to set
            set_option = ctypes.CDLL(None).mallopt
            for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, 1 << 28)):
                set_option(option, value)
        choice = choose_matmul(matmul)
        if choice != "default":
            torch.set_float32_matmul_precision(PRECISION[choice])
        return choice

    def seed(self, number: int) -> None:
        """Seed PyTorch's CPU generator alone."""
        torch.default_generator.manual_seed(number)

    def random_state(self) -> Tensor:
        """The state of PyTorch's CPU generator."""
        return torch.get_rng_state()

    def set_random_state(self, state: Tensor) -> None:
        """Restore what ``random_state`` returned."""
        torch.set_rng_state(state)


def _linux_memory(page: int) -> dict[str, int]:
    """``free`` of the machine, or of the container if that has less, and what is ``resident`` of this process, in bytes."""
    try:
        available = Path("/proc/meminfo").read_text(encoding="ascii").partition("MemAvailable:")[2].split()[0]
        resident = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return {}
    free = int(available) * 1024
    with contextlib.suppress(OSError, ValueError):  # without a limit the file says "max", or is not there
        limit, used = (
            int(Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="ascii")) for name in ("max", "current")
        )
        free = min(free, max(0, limit - used))
    return {"free": free, "resident": int(resident) * page}
