"""NVIDIA GPUs, and AMD GPUs under the ROCm build of PyTorch, which answers to the same name. Collectives: NCCL (RCCL)."""

from __future__ import annotations

import importlib.util

import torch

from diptych.devices import DEVICES
from diptych.devices._base import Device


@DEVICES.register("cuda")
class Cuda(Device):
    """A GPU that torch.cuda drives."""

    name = "cuda"
    backend = "nccl"
    fused_adamw = True

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
