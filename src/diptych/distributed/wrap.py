"""From a plain objective to one that trains on many processes, in one written order.

The order (each step may be absent): gradient checkpointing -> move to the device -> data parallel. Models and
objectives contain no parallelism; what they offer is ``blocks()``, modules, and forward calls.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from diptych.devices import Device
from diptych.distributed.process_group import World


@dataclass(frozen=True)
class ParallelOptions:
    """How the work is laid out over accelerators and processes."""

    device: str = "auto"
    """Accelerator: auto, or the name of one (diptych selftest lists them); NAME:1 picks the second."""
    dist_backend: str = ""
    """Collective backend under torchrun; empty takes the device's own."""
    precision: str = "auto"
    """fp32, bf16 or fp16 (mixed, with fp32 weights; open_clip's amp names work); auto takes the device's best."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""


PRECISIONS = {
    "fp32": "fp32",
    "bf16": "bf16",
    "amp_bf16": "bf16",
    "amp_bfloat16": "bf16",
    "fp16": "fp16",
    "amp": "fp16",
    "amp_fp16": "fp16",
}


def wrap(objective: nn.Module, device: Device, world: World) -> nn.Module:
    """Make the objective ready to train: on its device, with gradients averaged over processes."""
    objective.to(device.torch_device)
    if world.size == 1:
        return objective
    index = device.torch_device.index
    return DistributedDataParallel(
        objective, device_ids=None if index is None else [index], gradient_as_bucket_view=True
    )
