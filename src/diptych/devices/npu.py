"""Ascend NPUs, brought by the plug-in torch_npu. Collectives: HCCL.

The plug-in follows PyTorch's conventions; what stands here are two settings that matter to this toolkit.
"""

from __future__ import annotations

import torch

from diptych.devices import DEVICES
from diptych.devices._base import Device


@DEVICES.register("npu")
class Npu(Device):
    """An Ascend NPU."""

    name = "npu"
    backend = "hccl"
    plugin = "torch_npu"

    def select(self, index: int) -> None:
        """Select, and settle how operators are compiled and stored."""
        super().select(index)
        # Batches are padded to their own longest caption, so shapes change all the time: ready-made kernels must be
        # used, else older chips compile every operator anew for every shape.
        compile_mode = getattr(self.module, "set_compile_mode", None)
        if compile_mode is not None:
            compile_mode(jit_compile=False)
        # In the chip's private memory layouts some operators do not run, the norms of gradient clipping among them.
        settings = getattr(self.module, "config", None)
        if settings is not None:
            settings.allow_internal_format = False

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Half everywhere; bfloat16 from the 910B on, which the plug-in tells."""
        if dtype is torch.bfloat16:
            return bool(getattr(self.module, "is_bf16_supported", lambda: False)())
        return dtype is torch.float16
