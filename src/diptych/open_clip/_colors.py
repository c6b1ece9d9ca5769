"""Brightness, contrast, saturation and hue of one image by a known factor: of PIL images by Pillow, of tensors in torch.

Tensors are [..., 3 or 1, H, W]: bytes, or floats from 0 to 1. Factors of 1, and a turn of 0 for the hue, change nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from diptych.open_clip._pixels import InvalidTypeError

ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


def changed(image: Any, change: str, factor: float) -> Any:
    """The image with its brightness, contrast, saturation or hue changed; the same type."""
    if isinstance(image, Image.Image):
        return _turned(image, factor) if change == "hue" else ENHANCERS[change](image).enhance(factor)
    if not isinstance(image, Tensor) or image.ndim < 3 or image.shape[-3] not in (1, 3):
        raise InvalidTypeError(
            f"{type(image).__name__} was given; expected a PIL image or a tensor [..., 1 or 3, H, W]."
        )
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise InvalidTypeError(f"a tensor of {image.dtype} was given; expected uint8, or floats from 0 to 1.")
    if change == "brightness":
        return _blended(image, torch.zeros_like(image), factor)
    if change == "contrast":
        whole = gray(image).to(image.dtype if image.is_floating_point() else torch.float32)
        return _blended(image, whole.mean(dim=(-3, -2, -1), keepdim=True), factor)
    if image.shape[-3] == 1:
        return image  # without color
    return _blended(image, gray(image), factor) if change == "saturation" else _turned_tensor(image, factor)


def gray(image: Tensor) -> Tensor:
    """Luma [..., 1, H, W], by the weights of ITU-R BT.601 to the digits that torchvision uses."""
    if image.shape[-3] == 1:
        return image.clone()
    red, green, blue = image.unbind(dim=-3)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(image.dtype).unsqueeze(-3)


def _blended(image: Tensor, other: Tensor, ratio: float) -> Tensor:
    most = 1.0 if image.is_floating_point() else 255
    return (ratio * image + (1.0 - ratio) * other).clamp(0, most).to(image.dtype)


def _turned(image: Image.Image, turn: float) -> Image.Image:
    if image.mode in {"L", "1", "I", "F"}:
        return image  # without color
    hue, saturation, value = image.convert("HSV").split()
    # A full turn is 256 steps that wrap around; the number of steps is rounded towards zero.
    steps = np.asarray(hue) + np.int32(turn * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(steps), saturation, value)).convert(image.mode)


def _turned_tensor(image: Tensor, turn: float) -> Tensor:
    floats = image.float() if image.is_floating_point() else image.float() / 255
    hue, saturation, value = _hsv(floats)
    turned = _rgb((hue + turn) % 1.0, saturation, value)
    # Bytes: a factor just below 256, so that 1.0 becomes 255 and all 256 values are equally wide.
    return turned.to(image.dtype) if image.is_floating_point() else turned.mul(256 - 1e-3).to(torch.uint8)


def _hsv(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue, saturation and value, each from 0 to 1, of floats [..., 3, H, W] (Smith 1978)."""
    red, green, blue = image.unbind(dim=-3)
    most, least = image.amax(dim=-3), image.amin(dim=-3)
    spread, flat = most - least, most == least
    saturation = spread / most.masked_fill(flat, 1.0)
    divisor = spread.masked_fill(flat, 1.0)
    to_red, to_green, to_blue = (most - red) / divisor, (most - green) / divisor, (most - blue) / divisor
    sixths = torch.where(
        most == red,
        to_blue - to_green,
        torch.where(most == green, 2.0 + to_red - to_blue, 4.0 + to_green - to_red),
    )
    return torch.fmod(sixths / 6.0 + 1.0, 1.0), saturation, most


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    sector = torch.floor(hue * 6.0)
    part = hue * 6.0 - sector
    low = (value * (1.0 - saturation)).clamp(0.0, 1.0)
    falling = (value * (1.0 - saturation * part)).clamp(0.0, 1.0)
    rising = (value * (1.0 - saturation * (1.0 - part))).clamp(0.0, 1.0)
    index = (sector.long() % 6).unsqueeze(0)
    channels = (
        (value, falling, low, low, rising, value),
        (rising, value, value, falling, low, low),
        (low, low, rising, value, value, falling),
    )
    return torch.stack([torch.stack(levels).gather(0, index)[0] for levels in channels], dim=-3)
