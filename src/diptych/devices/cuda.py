"""NVIDIA GPUs, and AMD GPUs under the ROCm build of PyTorch, which answers to the same name. Collectives: NCCL (RCCL)."""

from __future__ import annotations

import importlib.util
import os

import torch

from diptych import log
from diptych.devices import DEVICES
from diptych.devices._base import Device
from diptych.devices._matmul import Matmul
from diptych.errors import ConfigError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")
"""The values under which cuBLAS promises equal results; the first is faster and costs 24 MB of memory."""


@DEVICES.register("cuda")
class Cuda(Device):
    """A GPU that torch.cuda drives."""

    name = "cuda"
    backend = "nccl"
    fused_adamw = True
    deterministic = True

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Half everywhere; bfloat16 where it is not emulated, which is far slower than fp32."""
        if dtype is torch.bfloat16:
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return dtype is torch.float16

    def has_varlen_attention(self) -> bool:
        """The kernel came with torch 2.10 and needs tensor cores of the Ampere generation or later."""
        if torch.version.hip is not None or importlib.util.find_spec("torch.nn.attention.varlen") is None:
            return False
        return torch.cuda.get_device_capability(self.torch_device) >= (8, 0)

    def prepare_process(self, matmul: str = "auto") -> Matmul:
        """``matmul`` "exact": fp32 products and convolutions with all 24 bits; "fast": in TF32, which has 11 of them.

        "auto" and "default" leave PyTorch's own setting: products exact, cuDNN's convolutions in TF32. TF32 needs an Ampere GPU
        or a later one; others compute exactly whatever is set.
        """
        if matmul not in ("exact", "fast"):
            return super().prepare_process(matmul)
        torch.set_float32_matmul_precision("highest" if matmul == "exact" else "high")
        torch.backends.cudnn.allow_tf32 = matmul == "fast"
        if matmul == "fast":
            log.info("--matmul fast: fp32 products and convolutions are computed in TF32, with 11 of their 24 bits")
        return "exact" if matmul == "exact" else "fast"

    def set_deterministic(self) -> None:
        """Also fix the workspaces of cuBLAS, which it reads when it is first used, and forbid cuDNN's timing of kernels."""
        given = os.environ.setdefault(WORKSPACE, DETERMINISTIC_WORKSPACES[0])
        if given not in DETERMINISTIC_WORKSPACES:
            raise ConfigError(
                f"--deterministic: {WORKSPACE}={given} is set; unset it, or set it to {' or '.join(DETERMINISTIC_WORKSPACES)}."
            )
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        super().set_deterministic()
