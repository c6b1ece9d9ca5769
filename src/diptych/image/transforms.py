"""From an RGB picture to the uint8 square that a tower takes: one recipe for training, one for evaluation.

Resizing uses Pillow's kernels, the field's reference. Sizes and crops follow the rules that CLIP's published numbers were
made with, to the pixel. Randomness comes from a generator that the caller seeds, never from global state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor

from diptych.errors import ConfigError

KERNELS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}


def _kernel(name: str) -> Image.Resampling:
    if name not in KERNELS:
        raise ConfigError(f"unknown interpolation {name!r}; known: {', '.join(KERNELS)}.")
    return KERNELS[name]


def planar(image: Image.Image) -> np.ndarray:
    """RGB -> uint8 [3, H, W], contiguous."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


@dataclass(frozen=True)
class EvalTransform:
    """The same pixels every time.

    ``resize_mode``: "shortest" resizes the short side to ``resize_to`` (0: ``size``) and crops the centre; "squash" resizes
    to the square; "longest" resizes the long side and pads with black.
    """

    size: int
    resize_mode: Literal["shortest", "squash", "longest"] = "shortest"
    interpolation: str = "bicubic"
    resize_to: int = 0

    def __call__(self, image: Image.Image) -> Tensor:
        """RGB picture -> uint8 [3, size, size]."""
        kernel = _kernel(self.interpolation)
        if self.resize_mode == "squash":
            return torch.from_numpy(planar(_resized(image, (self.size, self.size), kernel)))
        if self.resize_mode == "longest":
            return torch.from_numpy(planar(self._padded(image, kernel)))
        if self.resize_mode != "shortest":
            raise ConfigError(f"unknown resize mode {self.resize_mode!r}; known: shortest, squash, longest.")
        width, height = image.size
        short = min(width, height)
        # The long side is rounded down, the crop's corner to the nearest even choice: the field's rules.
        side = self.resize_to or self.size
        target = (side * width // short, side * height // short)
        image = _resized(image, target, kernel)
        left, top = round((target[0] - self.size) / 2), round((target[1] - self.size) / 2)
        return torch.from_numpy(planar(image.crop((left, top, left + self.size, top + self.size))))

    def _padded(self, image: Image.Image, kernel: Image.Resampling) -> Image.Image:
        scale = self.size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        page = Image.new("RGB", (self.size, self.size))
        page.paste(_resized(image, (width, height), kernel), ((self.size - width) // 2, (self.size - height) // 2))
        return page


def _resized(image: Image.Image, size: tuple[int, int], kernel: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, kernel)


def fast_resized(
    image: Image.Image | np.ndarray, box: tuple[int, int, int, int], size: int, interpolation: str
) -> np.ndarray:
    """A part of an RGB picture resized to a square by torch's kernel for uint8: uint8 [3, size, size], contiguous.

    The same antialiased bicubic or bilinear kernel as Pillow's, in 16-bit arithmetic. Raises ConfigError for another one.
    """
    if interpolation not in ("bicubic", "bilinear"):
        raise ConfigError(f"the fast kernel does not resize by {interpolation!r}; known: bicubic, bilinear.")
    left, top, right, bottom = box
    part = np.asarray(image)[top:bottom, left:right].copy()  # [h, w, 3], writable, as torch wants it
    pixels = torch.from_numpy(part).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size=(size, size), mode=interpolation, antialias=True)
    return resized[0].contiguous().numpy()


@dataclass(frozen=True)
class TrainTransform:
    """A random crop resized to the square, and on request a mirror image and changed colours.

    ``scale`` bounds the share of the area that the crop keeps, ``ratio`` its width over height (drawn on a logarithmic
    scale). ``flip`` and ``grayscale`` are probabilities; ``color_jitter`` j draws factors of brightness, contrast and
    saturation from 1 - j to 1 + j. ``kernel`` "exact" resizes with Pillow; "fast" with torch's vectorised form of the same
    kernel, several times as fast, which rounds between its two passes in another order: 0.04 grey levels apart on average.
    """

    size: int
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.0
    color_jitter: float = 0.0
    grayscale: float = 0.0
    kernel: Literal["exact", "fast"] = "exact"

    def __call__(self, image: Image.Image | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """RGB picture, or for the fast kernel also its pixels [H, W, 3] -> uint8 [3, size, size], all chance from ``rng``."""
        if isinstance(image, np.ndarray) and self.kernel != "fast":
            image = Image.fromarray(image)
        height, width = image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
        box = self._box(width, height, rng)
        if isinstance(image, np.ndarray) or self.kernel == "fast":
            pixels = fast_resized(image, box, self.size, self.interpolation)
            if not (self.flip or self.color_jitter or self.grayscale):
                return pixels
            image = Image.fromarray(pixels.transpose(1, 2, 0))
        else:
            image = _resized(image.crop(box), (self.size, self.size), _kernel(self.interpolation))
        if self.flip and rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.color_jitter:
            for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = change(image).enhance(rng.uniform(max(0.0, 1 - self.color_jitter), 1 + self.color_jitter))
        if self.grayscale and rng.random() < self.grayscale:
            image = image.convert("L").convert("RGB")
        return planar(image)

    def _box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """The crop's left, top, right, bottom: ten draws, then the largest centred crop of an allowed shape."""
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            shape = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            wide, high = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < wide <= width and 0 < high <= height:
                left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
                return left, top, left + wide, top + high
        shape = min(max(width / height, self.ratio[0]), self.ratio[1])
        wide = max(1, min(width, round(height * shape)))
        high = max(1, min(height, round(width / shape)))
        left, top = (width - wide) // 2, (height - high) // 2
        return left, top, left + wide, top + high
