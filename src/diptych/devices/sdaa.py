"""Tecorigin SDAA accelerators, brought by the plug-in torch_sdaa. Collectives: TCCL.

The plug-in mirrors torch.cuda's functions under torch.sdaa, so the conventions of the base class hold.
"""

from __future__ import annotations

from diptych.devices import DEVICES
from diptych.devices._base import Device


@DEVICES.register("sdaa")
class Sdaa(Device):
    """A Tecorigin accelerator."""

    name = "sdaa"
    backend = "tccl"
    plugin = "torch_sdaa"

    def default_precision(self) -> str:
        """The type that the vendor's own models train in, where it is available: fp16 with a gradient scaler."""
        return "fp16" if self.abilities.float16 else super().default_precision()
