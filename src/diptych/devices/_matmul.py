"""Which library computes fp32 matrix products on a CPU: MKL, torch's default, or oneDNN.

On AMD processors MKL runs at half of the speed that oneDNN reaches on the same core (benchmarks/race). Linear layers go to
oneDNN under ``torch.set_float32_matmul_precision("medium")``, which allows bfloat16 inside a product but does not demand it:
without AMX oneDNN computes in fp32 all the same, with another order of additions. With AMX "medium" means bfloat16.

The choice is made by what the processor is and by the accuracy of one product, never by a clock: the same machine always
chooses the same. This is not about bf16 and fp16 autocast, which use oneDNN already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.errors import ConfigError
from diptych.registry import did_you_mean

Matmul = Literal["exact", "fast", "default"]
"""What a process computes fp32 products with: MKL ("highest"), oneDNN ("medium"), or what torch was set to before."""

MATMUL_OPTIONS = ("auto", "exact", "fast", "default")
PRECISION = {"exact": "highest", "fast": "medium"}
"""Our names to those of ``torch.set_float32_matmul_precision``."""

SLOW_IN_MKL = ("AuthenticAMD", "HygonGenuine")
NEEDED = frozenset(
    {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
)  # without these torch does not send products to oneDNN
AMX = frozenset({"amx_tile", "amx_bf16", "amx_fp16"})
ERROR_RATIO = 4.0
"""How many times less accurate than MKL's the products of oneDNN may be. 1.6 was measured on Zen 4; bfloat16 gives over 1000."""

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Processor:
    """Vendor and instruction sets as Linux names them; both empty where it cannot be asked."""

    vendor: str = ""
    flags: frozenset[str] = frozenset()

    @property
    def slow_in_mkl(self) -> bool:
        """Whether this kind of processor gains by oneDNN without losing accuracy."""
        return self.vendor in SLOW_IN_MKL and self.flags >= NEEDED and not self.flags & AMX


def read_processor(path: Path | None = None) -> Processor:
    """The first processor in ``path`` (Linux's /proc/cpuinfo by default). On other systems, nothing is known."""
    try:
        text = (path or CPUINFO).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Processor()
    fields: dict[str, str] = {}
    for line in text.split("\n\n", 1)[0].splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    return Processor(fields.get("vendor_id", ""), frozenset(fields.get("flags", fields.get("Features", "")).split()))


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Context with ``torch.set_float32_matmul_precision(name)``."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def product_error(precision: str) -> float:
    """Error of a linear layer's product and of both products of its backward pass, as a share of their float64 norms.

    ``precision`` as ``torch.set_float32_matmul_precision`` names it. The worst of the three; a root mean square, because the
    largest single error depends on the split over threads. Always the same numbers; no random state is touched.
    """
    source = torch.Generator().manual_seed(1)
    inputs, weight, gradient = (torch.randn(*shape, generator=source) for shape in ((96, 768), (512, 768), (96, 512)))

    def products(x: Tensor, w: Tensor, g: Tensor) -> list[Tensor]:
        return [F.linear(x, w), g @ w, g.t() @ x]

    exact = products(inputs.double(), weight.double(), gradient.double())
    with matmul_precision(precision):
        computed = products(inputs, weight, gradient)
    return max(float((a.double() - b).norm() / b.norm()) for a, b in zip(computed, exact, strict=True))


def choose_matmul(
    option: str, processor: Processor | None = None, error: Callable[[str], float] | None = None
) -> Matmul:
    """The choice that ``option`` means on ``processor`` (this machine's by default); ``error`` replaces ``product_error``.

    Raises ConfigError for an unknown option, and for "fast" where products in oneDNN lose accuracy.
    """
    if option not in MATMUL_OPTIONS:
        raise ConfigError(did_you_mean(option, MATMUL_OPTIONS[:3], "matmul"))
    if option == "default":
        return "default"
    if option == "exact" or (option == "auto" and not (processor or read_processor()).slow_in_mkl):
        return "exact"
    exact, fast = ((error or product_error)(PRECISION[choice]) for choice in ("exact", "fast"))
    if fast <= ERROR_RATIO * exact:
        return "fast"
    if option == "auto":
        return "exact"
    raise ConfigError(
        f"--matmul fast: on this CPU a product would be {fast:.0e} from float64 instead of {exact:.0e}; "
        "choose --matmul exact, or --precision bf16 to trade accuracy for speed."
    )
