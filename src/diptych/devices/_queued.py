"""What a device can do whose work is queued, so that the host need not wait for it: copy on a stream of its own, count steps.

Each is tried once on the device itself, through PyTorch's device-neutral functions. Not a measurement of speed.
"""

from __future__ import annotations

import torch


def copy_stream(device: torch.device) -> torch.Stream | None:
    """A stream on which copies run beside computing; None where the device has a single one."""
    try:
        stream = torch.Stream(device)
        with stream:
            copied = torch.zeros(1).to(device)
        torch.accelerator.current_stream(device).wait_stream(stream)
        copied.record_stream(torch.accelerator.current_stream(device))
    except (RuntimeError, NotImplementedError, AttributeError, TypeError):
        return None
    return stream


def counts_steps(device: torch.device) -> bool:
    """Whether torch's AdamW can keep its count of steps on the device (``capturable``)."""
    weight = torch.nn.Parameter(torch.zeros(1, device=device))
    weight.grad = torch.zeros_like(weight)
    try:
        torch.optim.AdamW([weight], capturable=True).step()
    except (RuntimeError, NotImplementedError, AssertionError):
        return False
    return True
