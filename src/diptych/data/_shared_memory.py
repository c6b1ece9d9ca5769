"""A batch's pixels from a loader process to the main one, with as few page faults as the system allows.

Fresh shared memory is touched page by page, and every first touch is a trip into the kernel: 11 ms for 64 images of 224
pixels. So the pixels are put together in memory that the loader process reuses, written to an anonymous file in one call, and
only the file's descriptor travels; the main process maps it. Where a system has no such files, torch's own way is taken.
"""

from __future__ import annotations

import math
import mmap
import os
from multiprocessing import reduction
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

_SCRATCH: dict[str, np.ndarray] = {}


def pixel_buffer(shape: tuple[int, ...]) -> np.ndarray:
    """A uint8 array to fill; in a loader process the same memory every time, to be sent before the next batch."""
    if get_worker_info() is None or not hasattr(os, "memfd_create"):
        return np.empty(shape, dtype=np.uint8)
    size = math.prod(shape)
    buffer = _SCRATCH.get("pixels")
    if buffer is None or buffer.size < size:
        buffer = _SCRATCH["pixels"] = np.empty(size, dtype=np.uint8)
    return buffer[:size].reshape(shape)


def to_main_process(pixels: np.ndarray) -> Tensor:
    """The tensor of a filled array; in a loader process an object that unpickles as that tensor in the main process."""
    if get_worker_info() is None or not hasattr(os, "memfd_create"):
        return torch.from_numpy(pixels)
    return cast(Tensor, SentPixels(pixels))


class SentPixels:
    """Pixels on their way to another process."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.shape = pixels.shape
        self.descriptor = os.memfd_create("batch", os.MFD_CLOEXEC)
        view = pixels.data.cast("B")
        done = 0
        while done < len(view):  # one call moves two gigabytes at most
            done += os.write(self.descriptor, view[done:])

    def __reduce__(self) -> tuple[Any, ...]:
        """Only the descriptor travels; this process's own is closed with the object."""
        return received, (reduction.DupFd(self.descriptor), self.shape)

    def __del__(self) -> None:
        os.close(self.descriptor)


def received(descriptor: Any, shape: tuple[int, ...]) -> Tensor:
    """uint8 tensor over the file behind a descriptor that another process sent."""
    number = descriptor.detach()
    try:
        mapped = mmap.mmap(number, math.prod(shape))
    finally:
        os.close(number)
    return torch.frombuffer(mapped, dtype=torch.uint8).view(shape)
