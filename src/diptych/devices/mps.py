"""Apple GPUs through Metal Performance Shaders: one per machine, no float64, no collective library of its own (Gloo)."""

from __future__ import annotations

import torch
from torch import Tensor

from diptych.devices import DEVICES
from diptych.devices._base import Device


@DEVICES.register("mps")
class Mps(Device):
    """The GPU of an Apple machine."""

    name = "mps"

    @classmethod
    def count(cls) -> int:
        """One, or none."""
        return int(torch.backends.mps.is_available())

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Autocast knows both half types since torch 2.6."""
        return dtype in (torch.bfloat16, torch.float16)

    def pins_memory(self) -> bool:
        """Never: CPU and GPU share one memory."""
        return False

    def default_precision(self) -> str:
        """fp32: half types save little on these GPUs, and the gradient scaler works only on recent macOS."""
        return "fp32"

    def memory(self) -> dict[str, int]:
        """Bytes: ``allocated`` to tensors, ``reserved`` by Metal for this process, ``total`` that the system recommends."""
        return {
            "allocated": torch.mps.current_allocated_memory(),
            "reserved": torch.mps.driver_allocated_memory(),
            "total": torch.mps.recommended_max_memory(),
        }

    def random_state(self) -> Tensor:
        """The state of Metal's generator."""
        return torch.mps.get_rng_state().cpu()

    def set_random_state(self, state: Tensor) -> None:
        """Go back to what ``random_state`` gave."""
        torch.mps.set_rng_state(state)
