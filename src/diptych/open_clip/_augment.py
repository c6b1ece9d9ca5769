"""The random transforms of training, with torchvision's draws: the same torch seed gives the same crop and the same colors.

All chance comes from torch's global generator, as there. Diptych's own training does not use this: see ``diptych.image``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Number
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.open_clip._colors import changed, gray
from diptych.open_clip._errors import InvalidError
from diptych.open_clip._pixels import (
    InterpolationMode,
    InvalidTypeError,
    crop,
    dimensions,
    interpolation_mode,
    resize,
    two_sides,
)

Range = tuple[float, float]
CHANGES = ("brightness", "contrast", "saturation", "hue")


def _uniform(low: Any, high: Any) -> float:
    return float(torch.empty(1).uniform_(low, high).item())


class RandomResizedCrop(nn.Module):
    """A random part of the image, of a random shape, resized to ``size``.

    ``scale`` bounds the share of the area, ``ratio`` width over height, drawn on a logarithmic scale.
    """

    def __init__(
        self,
        size: Any,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3.0 / 4.0, 4.0 / 3.0),
        interpolation: Any = InterpolationMode.BILINEAR,
        antialias: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(scale, Sequence) or not isinstance(ratio, Sequence):
            raise InvalidTypeError(f"scale {scale!r} and ratio {ratio!r} were given; expected (least, most) for each.")
        if scale[0] > scale[1] or ratio[0] > ratio[1]:
            warnings.warn(f"scale {scale} and ratio {ratio} were given; expected (least, most).", stacklevel=2)
        self.size = two_sides(size)
        self.scale, self.ratio = scale, ratio
        self.interpolation, self.antialias = interpolation_mode(interpolation), antialias

    @staticmethod
    def get_params(img: Any, scale: Sequence[float], ratio: Sequence[float]) -> tuple[int, int, int, int]:
        """A box (top, left, height, width): ten draws, then the largest centered one of an allowed shape."""
        height, width = dimensions(img)
        bounds = torch.log(torch.tensor(ratio))
        for _ in range(10):
            area = height * width * _uniform(scale[0], scale[1])
            shape = float(torch.exp(torch.empty(1).uniform_(bounds[0], bounds[1])).item())  # type: ignore[arg-type]
            wide, high = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < wide <= width and 0 < high <= height:
                top = int(torch.randint(0, height - high + 1, size=(1,)).item())
                left = int(torch.randint(0, width - wide + 1, size=(1,)).item())
                return top, left, high, wide
        wide, high = width, height
        if width / height < min(ratio):
            high = round(width / min(ratio))
        elif width / height > max(ratio):
            wide = round(height * max(ratio))
        return (height - high) // 2, (width - wide) // 2, high, wide

    def forward(self, img: Any) -> Any:
        """PIL image or tensor -> the same type, of ``size``."""
        box = self.get_params(img, self.scale, self.ratio)
        return resize(crop(img, *box), self.size, self.interpolation, antialias=self.antialias)

    def __repr__(self) -> str:
        scale, ratio = (tuple(round(value, 4) for value in pair) for pair in (self.scale, self.ratio))
        rest = f"interpolation={self.interpolation.value}, antialias={self.antialias}"
        return f"{type(self).__name__}(size={self.size}, scale={scale}, ratio={ratio}, {rest})"


class ColorJitter(nn.Module):
    """Brightness, contrast, saturation and hue changed by random factors, in a random order.

    A number v means a factor from 1 - v to 1 + v (hue: a turn from -v to v); a pair is the range itself.
    """

    def __init__(self, brightness: Any = 0, contrast: Any = 0, saturation: Any = 0, hue: Any = 0) -> None:
        super().__init__()
        self.brightness = _factors("brightness", brightness)
        self.contrast = _factors("contrast", contrast)
        self.saturation = _factors("saturation", saturation)
        self.hue = _turns(hue)

    @staticmethod
    def get_params(
        brightness: Range | None, contrast: Range | None, saturation: Range | None, hue: Range | None
    ) -> tuple[Tensor, float | None, float | None, float | None, float | None]:
        """The order of the four changes, and the factor of each; None where it is switched off."""
        order = torch.randperm(4)
        drawn = [None if bounds is None else _uniform(*bounds) for bounds in (brightness, contrast, saturation, hue)]
        return order, drawn[0], drawn[1], drawn[2], drawn[3]

    def forward(self, img: Any) -> Any:
        """PIL image, or tensor [..., 1 or 3, H, W] of uint8 or of floats from 0 to 1 -> the same type."""
        order, *factors = self.get_params(self.brightness, self.contrast, self.saturation, self.hue)
        for number in order.tolist():
            factor = factors[number]
            if factor is not None:
                img = changed(img, CHANGES[number], factor)
        return img

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)}' for name in CHANGES)})"


def _factors(name: str, value: Any) -> Range | None:
    if isinstance(value, Number):
        number = float(value)  # type: ignore[arg-type]
        value = (max(1.0 - number, 0.0), 1.0 + number) if number >= 0 else (number, number)
    return _range(name, value, (0.0, math.inf), 1.0)


def _turns(value: Any) -> Range | None:
    if isinstance(value, Number):
        number = float(value)  # type: ignore[arg-type]
        value = (-number, number) if number >= 0 else (1.0, 1.0)
    return _range("hue", value, (-0.5, 0.5), 0.0)


def _range(name: str, value: Any, bounds: Range, neutral: float) -> Range | None:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise InvalidTypeError(f"{name} {value!r} was given; expected a number, or a pair (least, most).")
    low, high = float(value[0]), float(value[1])
    if not bounds[0] <= low <= high <= bounds[1]:
        raise InvalidError(f"{name} of {low:g} to {high:g} was given; expected a range within {bounds}.")
    return None if low == high == neutral else (low, high)


class Grayscale(nn.Module):
    """Luma of an image: one channel, or three that are equal."""

    def __init__(self, num_output_channels: int = 1) -> None:
        super().__init__()
        self.num_output_channels = num_output_channels

    def forward(self, img: Any) -> Any:
        """PIL image of any mode, or tensor [..., 1 or 3, H, W] -> the same type."""
        if self.num_output_channels not in (1, 3):
            raise InvalidError(f"num_output_channels {self.num_output_channels} was given; expected 1 or 3.")
        if isinstance(img, Image.Image):
            channel = img.convert("L")
            return channel if self.num_output_channels == 1 else Image.merge("RGB", (channel,) * 3)
        if not isinstance(img, Tensor) or img.ndim < 3 or img.shape[-3] not in (1, 3):
            raise InvalidTypeError("Grayscale takes a PIL image or a tensor [..., 1 or 3 channels, height, width].")
        luma = gray(img)
        return luma.expand(img.shape) if self.num_output_channels == 3 else luma

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_output_channels={self.num_output_channels})"
