"""A batch on its way to the device: copied from page-locked memory, on a stream of its own, while the step before still runs.

On the CPU a batch is there already. Chooses no batch, and waits for none.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from diptych.devices import Device
from diptych.types import Batch

HOST_FIELDS = ("keys", "epoch", "num_truncated")


class Transfer:
    """Moves batches to a device, beside its work where it has a second stream."""

    def __init__(self, device: Device) -> None:
        self.device = device.torch_device
        self.stream = device.copy_stream()

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its tensors on the device; work that is given to the device from now on sees them whole."""
        if self.stream is None or batch.tokens.device.type == self.device.type:
            return move(batch, self.device)
        with self.stream:
            moved = move(batch, self.device)
        computing = torch.accelerator.current_stream(self.device)
        computing.wait_stream(self.stream)
        for item in tensors_of(moved):
            item.record_stream(computing)  # its memory is free for other copies when the step is done with it
        return moved


def move(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device; from page-locked memory the copy overlaps with computing."""
    if batch.masked is not None and batch.masked.targets.is_cpu and device.type != "cpu":
        positions = (batch.masked.targets.flatten() >= 0).nonzero()[:, 0]  # here, where it costs no wait
        batch = batch._replace(predicted=positions)
    sent = {
        name: tree_map_only(Tensor, lambda item: item.to(device, non_blocking=True), item)
        for name, item in batch._asdict().items()
        if name not in HOST_FIELDS
    }
    return batch._replace(**sent)


def tensors_of(batch: Batch) -> list[Tensor]:
    """Every tensor of a batch."""
    fields = (item for name, item in batch._asdict().items() if name not in HOST_FIELDS)
    return [item for item in tree_leaves(tuple(fields)) if isinstance(item, Tensor)]
