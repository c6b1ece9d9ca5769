"""What one training step asks of a device: kernels, operators, calls of attention, and points where the host waits for it.

Counted by PyTorch's profiler, so that the same code counts our step and a peer's, on any device. A count does not depend on how
busy the machine is. Not by a dispatch mode: under one our towers compute in full, since somebody looks inside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

WAITS = ("Synchronize", "Memcpy DtoH")  # of a vendor's runtime
READS = ("aten::_local_scalar_dense", "aten::nonzero")  # which wait on every device
ATTENTION = ("aten::scaled_dot_product_attention", "torch_attn::_varlen_attn")  # forward; ours and a peer's


def counts(step: Callable[[], Any]) -> dict[str, int]:
    """Of one call of ``step``, after one that warms up."""
    step()
    kinds = [ProfilerActivity.CPU]
    if torch.accelerator.is_available():
        kinds += [kind for kind in torch.profiler.supported_activities() if kind != ProfilerActivity.CPU]
    with profile(activities=kinds) as result:
        step()
    events = list(result.events())
    kernels = [event for event in events if event.device_type != torch.autograd.DeviceType.CPU]
    host = [event for event in events if event.device_type == torch.autograd.DeviceType.CPU]
    names = Counter(event.name for event in host)
    last = [event.name for event in host if own(event) and not any(map(own, event.cpu_children))]
    return {
        "kernels": len(kernels),
        "operators": len(last),
        "attention_calls": sum(number for name, number in names.items() if name in ATTENTION),
        "waits": sum(number for name, number in names.items() if any(part in name for part in WAITS)),
        "reads": sum(names[name] for name in READS),
    }


def own(event: Any) -> bool:
    """Whether it is an operator of PyTorch; those that call no other are counted, views among them."""
    return bool(event.name.startswith("aten::"))
