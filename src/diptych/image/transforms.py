"""From an RGB image to the uint8 square that a tower takes: a recipe for training and one for evaluation.

Resizing gives Pillow's pixels, the field's reference. Sizes and crops follow the rules that CLIP's published numbers were
made with, to the pixel. Randomness comes from a generator that the caller seeds, never from global state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from diptych.errors import ConfigError
from diptych.image.auto_augment import auto_augment
from diptych.image.colors import shift_hue
from diptych.image.pixels import AnyImage, pixels_of
from diptych.image.resize import Box, planar, resize, resize_fast

BLUR_SIGMA = (0.1, 2.0)
"""Standard deviations of a random blur, in pixels, least and most: MoCo v2's."""


@dataclass(frozen=True)
class EvalTransform:
    """The same pixels every time.

    ``resize_mode``: "shortest" resizes the short side to ``resize_to`` (0: ``size``) and crops the center; "squash" resizes
    to the square; "longest" resizes the long side and pads with black.
    """

    size: int
    resize_mode: Literal["shortest", "squash", "longest"] = "shortest"
    interpolation: str = "bicubic"
    resize_to: int = 0

    def __call__(self, image: AnyImage) -> Tensor:
        """An image, or its pixels uint8 [h, w, 3] -> uint8 [3, size, size].

        Raises RecordError for what ``pixels_of`` does not take.
        """
        pixels = pixels_of(image)
        if self.resize_mode == "squash":
            return torch.from_numpy(resize(pixels, (self.size, self.size), self.interpolation))
        if self.resize_mode == "longest":
            return torch.from_numpy(self._padded(pixels))
        if self.resize_mode != "shortest":
            raise ConfigError(f"unknown resize mode {self.resize_mode!r}; known: shortest, squash, longest.")
        height, width = pixels.shape[:2]
        short = min(width, height)
        # The long side is rounded down, the crop's corner to the nearest even choice: the field's rules.
        side = self.resize_to or self.size
        target = (side * width // short, side * height // short)
        left, top = round((target[0] - self.size) / 2), round((target[1] - self.size) / 2)
        part = (left, top, left + self.size, top + self.size)
        return torch.from_numpy(resize(pixels, target, self.interpolation, part))

    def _padded(self, pixels: np.ndarray) -> np.ndarray:
        scale = self.size / max(pixels.shape[:2])
        height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
        top, left = (self.size - height) // 2, (self.size - width) // 2
        page = np.zeros((3, self.size, self.size), np.uint8)
        page[:, top : top + height, left : left + width] = resize(pixels, (width, height), self.interpolation)
        return page


@dataclass(frozen=True)
class TrainTransform:
    """A random crop resized to the square, and on request a mirror image and changed colors.

    ``scale`` bounds the share of the area that the crop keeps, ``ratio`` its width over height (drawn on a logarithmic
    scale). ``flip`` and ``grayscale`` are probabilities; ``color_jitter`` j draws factors of brightness, contrast and
    saturation from 1 - j to 1 + j, and ``hue`` h turns the hue by up to h of the color circle; ``color_jitter_prob`` is the
    probability of both. ``blur`` is that of a Gaussian blur of 0.1 to 2 pixels; ``auto`` "imagenet" changes every image by
    AutoAugment's policy, after the mirror and before the colors. ``kernel`` "exact" gives Pillow's pixels; "fast" those of
    torch's vectorised form of the same kernel, which rounds between its two passes in another order: 0.04 gray levels apart
    on average.
    """

    size: int
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bicubic"
    flip: float = 0.0
    color_jitter: float = 0.0
    grayscale: float = 0.0
    kernel: Literal["exact", "fast"] = "exact"
    hue: float = 0.0
    color_jitter_prob: float = 1.0
    blur: float = 0.0
    auto: Literal["", "imagenet"] = ""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(
                f"--aug-scale {self.scale[0]:g} {self.scale[1]:g}: expected the least and the most share of an image that "
                "a crop keeps, above 0 and at most 1."
            )
        if self.color_jitter_prob != 1 and not (self.color_jitter or self.hue):
            raise ConfigError("--aug-color-jitter-prob goes with --aug-color-jitter or --aug-hue; add one of them.")

    def __call__(self, image: AnyImage, rng: np.random.Generator) -> np.ndarray:
        """An image, or its pixels uint8 [h, w, 3] -> uint8 [3, size, size], all randomness from ``rng``.

        Raises RecordError for what ``pixels_of`` does not take.
        """
        pixels = pixels_of(image)
        left, top, right, bottom = self._box(pixels.shape[1], pixels.shape[0], rng)
        crop = pixels[top:bottom, left:right]
        if self.kernel == "fast":
            square = resize_fast(crop, self.size, self.interpolation)
        else:
            square = resize(crop, (self.size, self.size), self.interpolation)
        if not (self.flip or self.color_jitter or self.hue or self.grayscale or self.blur or self.auto):
            return square
        return planar(np.asarray(self._changed(Image.fromarray(square.transpose(1, 2, 0)), rng)))

    def _changed(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if self.flip and rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.auto:
            image = auto_augment(image, rng)
        # A certain change draws nothing, so that runs from before the probability are what they were.
        jitters = self.color_jitter_prob == 1 or rng.random() < self.color_jitter_prob
        if self.color_jitter and jitters:
            for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = change(image).enhance(rng.uniform(max(0.0, 1 - self.color_jitter), 1 + self.color_jitter))
        if self.hue and jitters:
            image = shift_hue(image, float(rng.uniform(-self.hue, self.hue)))
        if self.grayscale and rng.random() < self.grayscale:
            image = image.convert("L").convert("RGB")
        if self.blur and rng.random() < self.blur:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_SIGMA)))
        return image

    def _box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        """The crop's left, top, right, bottom: ten draws, then the largest centered crop of an allowed shape."""
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
