"""Importing open_clip beside a CPU build of torch, and saying what was measured on which machine. Benchmarks only."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import types
from typing import Any


def open_clip() -> types.ModuleType:
    """The peer. Declares the two torchvision operators whose kernels are not in a CPU build, so that the import succeeds."""
    import torch

    for name, schema in (
        ("nms", "nms(Tensor a, Tensor b, float c) -> Tensor"),
        ("qnms", "qnms(Tensor a, Tensor b, float c) -> Tensor"),
    ):
        if not hasattr(torch.ops.torchvision, name):
            _LIBRARIES.append(torch.library.Library("torchvision", "FRAGMENT"))
            _LIBRARIES[-1].define(schema)
    import open_clip

    return open_clip


_LIBRARIES: list[Any] = []


def machine(*packages: str) -> dict[str, Any]:
    """Versions, cores and load, for the raw results."""
    import torch

    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
