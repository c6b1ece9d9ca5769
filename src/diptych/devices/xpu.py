"""Intel GPUs, built into the XPU build of PyTorch. Collectives: XCCL, part of PyTorch since 2.8."""

from __future__ import annotations

import torch

from diptych.devices import DEVICES
from diptych.devices._base import Device


@DEVICES.register("xpu")
class Xpu(Device):
    """An Intel GPU."""

    name = "xpu"
    backend = "xccl"
    fused_adamw = True
    deterministic = True

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Both half types: every GPU that this build supports computes in them."""
        return dtype in (torch.bfloat16, torch.float16)
