"""Ascend NPUs, brought by the plug-in torch_npu. Collectives: HCCL.

The plug-in follows PyTorch's conventions; this file adds the settings that matter to this toolkit.
"""

from __future__ import annotations

import os

import torch

from diptych.devices import DEVICES
from diptych.devices._base import Device


@DEVICES.register("npu")
class Npu(Device):
    """An Ascend NPU."""

    name = "npu"
    backend = "hccl"
    plugin = "torch_npu"
    deterministic = True

    def select(self, index: int) -> None:
        """Select, and set how operators are compiled and stored."""
        super().select(index)
        # Texts of training have a few shapes (--text-buckets), other batches more: precompiled kernels must be used, else older
        # chips compile every operator again for every shape.
        compile_mode = getattr(self.module, "set_compile_mode", None)
        if compile_mode is not None:
            compile_mode(jit_compile=False)
        # In the chip's private memory layouts some operators do not run, the norms of gradient clipping among them.
        settings = getattr(self.module, "config", None)
        if settings is not None:
            settings.allow_internal_format = False

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Half everywhere; bfloat16 from the 910B on, as the plug-in reports."""
        if dtype is torch.bfloat16:
            return bool(getattr(self.module, "is_bf16_supported", lambda: False)())
        return dtype is torch.float16

    def set_deterministic(self) -> None:
        """Also for the collectives and for the products, which split their sums otherwise; read when each library starts.

        Names as in Ascend's own training library (MindSpeed, ``set_deterministic``).
        """
        os.environ.update(HCCL_DETERMINISTIC="true", LCCL_DETERMINISTIC="1", CLOSE_MATMUL_K_SHIFT="1")
        super().set_deterministic()
