"""A single call that resizes an image: Pillow's pixels, by Pillow or by our compiled form of it, or torch's faster approximation.

An image is uint8 [h, w, 3]; what comes back is uint8 [3, H, W], as towers take it. Which way was taken changes no pixel but
with ``fast``. No cropping of its own beyond the part that is asked for, and no randomness.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from diptych.errors import ConfigError

KERNELS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
Box = tuple[int, int, int, int]
WORTH = 4000  # images from which the compiled kernels win, at 0.5 ms each
_compiled: list[ModuleType] = []  # our kernels, once they are worth their import


def compile_kernels(images: int | None) -> None:
    """Make ``resize`` use the compiled kernels in this process and those forked from it, if numba is installed.

    ``images`` says how many will be resized, None that it may be any number: the import takes half a second, and three more
    the first time on a machine, which a few thousand images repay.
    """
    if (images is None or images >= WORTH) and not _compiled and (kernels := _import_kernels()) is not None:
        _compiled.append(kernels)


@cache
def _import_kernels() -> ModuleType | None:
    try:
        from diptych.image import _kernels
    except (ImportError, RuntimeError):  # not installed; or no folder to store what was compiled in, which numba reports so
        return None
    return _kernels


def resize(image: np.ndarray, size: tuple[int, int], interpolation: str, part: Box | None = None) -> np.ndarray:
    """Resize to ``size`` (width, height) and return ``part`` of that (left, top, right, bottom; all of it by default)."""
    kernel = pillow_kernel(interpolation)
    part = part or (0, 0, *size)
    height, width = image.shape[:2]
    if (width, height) == size:
        return planar(image[part[1] : part[3], part[0] : part[2]])
    # Of tall strips that shrink, Pillow (since 11) resizes the columns first: left to it, since that rounds otherwise.
    strip = height > 100 * width and size[1] < height
    if _compiled and interpolation in _compiled[0].KERNELS and not strip:
        resized: np.ndarray = _compiled[0].resized(image, size, part, interpolation)
        return resized
    return planar(np.asarray(Image.fromarray(image).resize(size, kernel).crop(part)))


def resize_fast(image: np.ndarray, size: int, interpolation: str) -> np.ndarray:
    """Resize to a square by torch's kernel for bytes: the same antialiased kernel as Pillow's, in 16-bit arithmetic.

    Raises ConfigError for another kernel than bicubic and bilinear.
    """
    if interpolation not in ("bicubic", "bilinear"):
        raise ConfigError(f"the fast kernel does not resize by {interpolation!r}; known: bicubic, bilinear.")
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]  # a copy: torch wants it writable
    resized = F.interpolate(pixels, size=(size, size), mode=interpolation, antialias=True)
    return resized[0].contiguous().numpy()


def pillow_kernel(name: str) -> Image.Resampling:
    """Pillow's number for a kernel's name. Raises ConfigError for an unknown one."""
    if name not in KERNELS:
        raise ConfigError(f"unknown interpolation {name!r}; known: {', '.join(KERNELS)}.")
    return KERNELS[name]


def planar(image: np.ndarray) -> np.ndarray:
    """RGB [h, w, 3] -> uint8 [3, h, w], contiguous."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))
