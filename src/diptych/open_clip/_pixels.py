"""Resizing, cropping, padding and normalizing of PIL images and tensors, to torchvision's pixels, without torchvision.

Sizes are (height, width). Images are PIL's, of any mode, or tensors [..., H, W]. What programs see is in
``transform``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from enum import Enum
from numbers import Number
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from diptych.errors import ConfigError
from diptych.open_clip._errors import InvalidError

Size = int | Sequence[int]


class InvalidTypeError(ConfigError, TypeError):
    """An image of another type; torchvision raises TypeError."""


class InterpolationMode(Enum):
    """Kernels by torchvision's names."""

    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


PILLOW = {
    InterpolationMode.NEAREST: Image.Resampling.NEAREST,
    InterpolationMode.NEAREST_EXACT: Image.Resampling.NEAREST,
    InterpolationMode.BILINEAR: Image.Resampling.BILINEAR,
    InterpolationMode.BICUBIC: Image.Resampling.BICUBIC,
    InterpolationMode.BOX: Image.Resampling.BOX,
    InterpolationMode.HAMMING: Image.Resampling.HAMMING,
    InterpolationMode.LANCZOS: Image.Resampling.LANCZOS,
}
BY_NUMBER = {int(number): mode for mode, number in PILLOW.items() if mode != InterpolationMode.NEAREST_EXACT}
# Whole-number images that are no bytes keep their values, as torchvision reads them.
WIDE_MODES = {"I": np.int32, "I;16" if sys.byteorder == "little" else "I;16B": np.int16, "F": np.float32}


def interpolation_mode(value: Any) -> InterpolationMode:
    """A kernel by our enum, torchvision's, Pillow's number, or its name."""
    if isinstance(value, InterpolationMode):
        return value
    if isinstance(value, int) and int(value) in BY_NUMBER:
        return BY_NUMBER[int(value)]
    try:
        return InterpolationMode(getattr(value, "value", value))
    except ValueError:
        names = ", ".join(mode.value for mode in InterpolationMode)
        raise InvalidError(f"interpolation {value!r} was given; expected one of {names}.") from None


def two_sides(size: Any) -> tuple[int, int]:
    """A size as (height, width): one number is both."""
    if isinstance(size, Number):
        return int(size), int(size)  # type: ignore[call-overload]
    if len(size) == 1:
        return size[0], size[0]
    if len(size) != 2:
        raise InvalidError(f"size {size} was given; expected a number, or (height, width).")
    return size  # type: ignore[no-any-return]


def dimensions(image: Any) -> tuple[int, int]:
    """(height, width). Raises TypeError for what is neither a PIL image nor a tensor."""
    if isinstance(image, Tensor):
        if image.ndim < 2:
            raise InvalidTypeError(f"a tensor of shape {list(image.shape)} was given; expected [..., height, width].")
        return image.shape[-2], image.shape[-1]
    if not isinstance(image, Image.Image):
        raise InvalidTypeError(f"{type(image).__name__} was given; expected a PIL image or a tensor.")
    return image.height, image.width


def resized_dimensions(image: Any, size: Size, max_size: int | None = None) -> tuple[int, int]:
    """What ``resize`` makes of this image: one number is the short side's, and the long side is rounded down."""
    height, width = dimensions(image)
    if not isinstance(size, int) and len(size) == 2:
        return size[0], size[1]
    short_side = size if isinstance(size, int) else size[0]
    short, long = min(height, width), max(height, width)
    new_short, new_long = short_side, int(short_side * long / short)
    if max_size is not None:
        if max_size <= short_side:
            raise InvalidError(f"max_size {max_size} was given; expected more than the short side, {short_side}.")
        if new_long > max_size:
            new_short, new_long = int(max_size * new_short / new_long), max_size
    return (new_long, new_short) if width <= height else (new_short, new_long)


def resize(image: Any, size: Size, mode: InterpolationMode, max_size: int | None = None, antialias: bool = True) -> Any:
    """Resize; an image that has the size already is given back itself."""
    target = resized_dimensions(image, size, max_size)
    if target == dimensions(image):
        return image
    if not isinstance(image, Tensor):
        if antialias is False:
            warnings.warn("antialias=False was given; Pillow always smooths, so it is not used.", stacklevel=3)
        return image.resize(target[::-1], PILLOW[mode])
    smooth = mode in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
    batch = image[None] if image.ndim < 4 else image
    batch = batch if batch.dtype in (torch.float32, torch.float64) else batch.float()
    out = F.interpolate(
        batch,
        size=target,
        mode=mode.value,
        align_corners=False if smooth else None,
        antialias=bool(antialias) and smooth,
    )
    if image.dtype == torch.uint8 and mode == InterpolationMode.BICUBIC:
        out = out.clamp(0, 255)  # bicubic overshoots
    out = out.round() if not image.is_floating_point() else out
    return (out[0] if image.ndim < 4 else out).to(image.dtype)


def pad(image: Any, sides: tuple[int, int, int, int], fill: Any = 0) -> Any:
    """Add ``sides`` (left, top, right, bottom) of one color, or of one value per channel for PIL images."""
    if isinstance(image, Tensor):
        left, top, right, bottom = sides
        batch = image[None] if image.ndim < 4 else image
        padded = F.pad(batch, (left, right, top, bottom), value=float(fill))
        return padded[0] if image.ndim < 4 else padded
    page = ImageOps.expand(image, border=sides, fill=_color(fill, image))
    if image.mode == "P":
        page.putpalette(image.getpalette())  # expand may have sorted it
    return page


def _color(fill: Any, image: Image.Image) -> Any:
    channels = len(image.getbands())
    whole = float if image.mode == "F" else int
    if not isinstance(fill, list | tuple):
        return whole(fill) if channels == 1 else (whole(fill),) * channels
    if len(fill) == 1:
        fill = list(fill) * channels
    if len(fill) != channels:
        raise InvalidError(
            f"fill {fill} was given for an image of {channels} channels; expected one value, or {channels}."
        )
    return tuple(whole(value) for value in fill)


def crop(image: Any, top: int, left: int, height: int, width: int) -> Any:
    """Cut a box out; what lies outside of the image is black."""
    if not isinstance(image, Tensor):
        return image.crop((left, top, left + width, top + height))
    high, wide = dimensions(image)
    right, bottom = left + width, top + height
    inside = image[..., max(top, 0) : bottom, max(left, 0) : right]
    if left >= 0 and top >= 0 and right <= wide and bottom <= high:
        return inside
    before = (max(min(right, 0) - left, 0), max(min(bottom, 0) - top, 0))
    return pad(inside, (*before, max(right - max(wide, left), 0), max(bottom - max(high, top), 0)))


def center_crop(image: Any, size: Any, fill: Any = 0) -> Any:
    """Cut the center out; an image that is too small is padded with ``fill`` first."""
    height, width = two_sides(size)
    high, wide = dimensions(image)
    if width > wide or height > high:
        more, taller = max(width - wide, 0), max(height - high, 0)
        image = pad(image, (more // 2, taller // 2, (more + 1) // 2, (taller + 1) // 2), fill)
        high, wide = dimensions(image)
        if (high, wide) == (height, width):
            return image
    # Halves round to the even number, as in torchvision.
    return crop(image, round((high - height) / 2.0), round((wide - width) / 2.0), height, width)


def to_tensor(image: Any) -> Tensor:
    """PIL image or ndarray [H, W] or [H, W, C] -> [C, H, W]: bytes become 0 to 1 in float, other types keep their values."""
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3):
            raise InvalidError(f"an array of shape {list(image.shape)} was given; expected [H, W] or [H, W, C].")
        pixels = torch.from_numpy((image[:, :, None] if image.ndim == 2 else image).transpose(2, 0, 1))
    elif isinstance(image, Image.Image):
        array = np.array(image, WIDE_MODES.get(image.mode, np.uint8))
        pixels = torch.from_numpy(array * 255 if image.mode == "1" else array)
        pixels = pixels.view(image.height, image.width, len(image.getbands())).permute(2, 0, 1)
    else:
        raise InvalidTypeError(f"{type(image).__name__} was given; expected a PIL image or a numpy array.")
    pixels = pixels.contiguous()
    return pixels.to(torch.get_default_dtype()).div_(255) if pixels.dtype == torch.uint8 else pixels


def normalize(tensor: Any, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> Tensor:
    """(x - mean) / std by channel, of a float tensor [..., C, H, W]."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise InvalidTypeError(f"{given} was given; expected a float tensor: convert with MaybeToTensor first.")
    if tensor.ndim < 3:
        raise InvalidError(
            f"a tensor of shape {list(tensor.shape)} was given; expected [..., channels, height, width]."
        )
    means, stds = (torch.as_tensor(values, dtype=tensor.dtype, device=tensor.device) for values in (mean, std))
    if bool((stds == 0).any()):
        raise InvalidError(f"std {std} was given; expected values that are not 0 in {tensor.dtype}.")
    by_channel = [values.view(-1, 1, 1) if values.ndim == 1 else values for values in (means, stds)]
    return (tensor if inplace else tensor.clone()).sub_(by_channel[0]).div_(by_channel[1])
