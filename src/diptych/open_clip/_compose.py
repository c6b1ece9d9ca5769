"""The fixed transforms under torchvision's class names and attributes, for programs that inspect and reorder them.

The random ones are in ``_augment``; what computes pixels is in ``_pixels``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from torch import Tensor, nn

from diptych.open_clip._errors import InvalidError
from diptych.open_clip._pixels import (
    InterpolationMode,
    InvalidTypeError,
    Size,
    center_crop,
    interpolation_mode,
    normalize,
    resize,
    to_tensor,
    two_sides,
)


class Compose:
    """One transform after the other; ``transforms`` lists them."""

    def __init__(self, transforms: list[Callable[[Any], Any]]) -> None:
        self.transforms = transforms

    def __call__(self, img: Any) -> Any:
        """What the last one gives."""
        for transform in self.transforms:
            img = transform(img)
        return img

    def __repr__(self) -> str:
        return "\n".join([f"{type(self).__name__}(", *(f"    {transform}" for transform in self.transforms), ")"])


class Resize(nn.Module):
    """To ``size``: (height, width), or one number for the short side."""

    def __init__(
        self,
        size: Size,
        interpolation: Any = InterpolationMode.BILINEAR,
        max_size: int | None = None,
        antialias: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(size, int | Sequence):
            raise InvalidTypeError(f"size {size!r} was given; expected a number, or (height, width).")
        if not isinstance(size, int) and len(size) not in (1, 2):
            raise InvalidError(f"size {size} was given; expected a number, or (height, width).")
        self.size, self.max_size, self.antialias = size, max_size, antialias
        self.interpolation = interpolation_mode(interpolation)

    def forward(self, img: Any) -> Any:
        """PIL image or tensor -> the same type."""
        return resize(img, self.size, self.interpolation, self.max_size, self.antialias)

    def __repr__(self) -> str:
        rest = f"max_size={self.max_size}, antialias={self.antialias}"
        return f"{type(self).__name__}(size={self.size}, interpolation={self.interpolation.value}, {rest})"


class CenterCrop(nn.Module):
    """The center of an image; black around one that is too small."""

    def __init__(self, size: Any) -> None:
        super().__init__()
        self.size = two_sides(size)

    def forward(self, img: Any) -> Any:
        """PIL image or tensor -> the same type, of ``size``."""
        return center_crop(img, self.size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size})"


class ToTensor:
    """PIL image or ndarray [H, W, C] -> float tensor [C, H, W] from 0 to 1."""

    def __call__(self, pic: Any) -> Tensor:
        """The tensor."""
        return to_tensor(pic)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Normalize(nn.Module):
    """(x - mean) / std, by channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> None:
        super().__init__()
        self.mean, self.std, self.inplace = mean, std, inplace

    def forward(self, tensor: Tensor) -> Tensor:
        """Float tensor [..., C, H, W] -> the same shape."""
        return normalize(tensor, self.mean, self.std, self.inplace)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mean={self.mean}, std={self.std})"


class ResizeKeepRatio:
    """Resize so that the short side fits ``size`` (``longest`` 0), or the long one (1), or between; on request at random.

    ``random_scale_prob`` and ``random_aspect_prob`` are how often the size, or the shape, is multiplied by a factor of its range.
    """

    def __init__(
        self,
        size: Any,
        longest: float = 0.0,
        interpolation: Any = InterpolationMode.BICUBIC,
        random_scale_prob: float = 0.0,
        random_scale_range: tuple[float, float] = (0.85, 1.05),
        random_aspect_prob: float = 0.0,
        random_aspect_range: tuple[float, float] = (0.9, 1.11),
    ) -> None:
        self.size = tuple(size) if isinstance(size, list | tuple) else (size, size)
        self.interpolation, self.longest = interpolation_mode(interpolation), float(longest)
        self.random_scale_prob, self.random_scale_range = random_scale_prob, random_scale_range
        self.random_aspect_prob, self.random_aspect_range = random_aspect_prob, random_aspect_range

    @staticmethod
    def get_params(
        img: Image.Image,
        target_size: tuple[int, int],
        longest: float,
        random_scale_prob: float = 0.0,
        random_scale_range: tuple[float, float] = (0.85, 1.05),
        random_aspect_prob: float = 0.0,
        random_aspect_range: tuple[float, float] = (0.9, 1.11),
    ) -> list[int]:
        """The new [height, width]; chance comes from ``random``."""
        if not isinstance(img, Image.Image):
            raise InvalidTypeError(
                f"{type(img).__name__} was given; this resize takes PIL images only, as in open_clip."
            )
        ratios = (img.height / target_size[0], img.width / target_size[1])
        ratio = max(ratios) * longest + min(ratios) * (1.0 - longest)
        factors = (1.0, 1.0)
        if random_scale_prob > 0 and random.random() < random_scale_prob:
            factors = (random.uniform(*random_scale_range),) * 2
        if random_aspect_prob > 0 and random.random() < random_aspect_prob:
            aspect = random.uniform(*random_aspect_range)
            factors = (factors[0] / aspect, factors[1] * aspect)
        return [round(img.height * factors[0] / ratio), round(img.width * factors[1] / ratio)]

    def __call__(self, img: Image.Image) -> Any:
        """PIL image -> PIL image."""
        chances = (self.random_scale_prob, self.random_scale_range, self.random_aspect_prob, self.random_aspect_range)
        return resize(img, self.get_params(img, self.size, self.longest, *chances), self.interpolation)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(size={self.size}, interpolation={self.interpolation}, longest={self.longest:.3f})"
        )


def center_crop_or_pad(img: Any, output_size: Any, fill: Any = 0) -> Any:
    """The center of a PIL image or tensor; one that is too small is padded with ``fill`` first."""
    return center_crop(img, output_size, fill)


class CenterCropOrPad(nn.Module):
    """``center_crop_or_pad`` of a fixed size and color."""

    def __init__(self, size: Any, fill: Any = 0) -> None:
        super().__init__()
        self.size, self.fill = two_sides(size), fill

    def forward(self, img: Any) -> Any:
        """PIL image or tensor -> the same type, of ``size``."""
        return center_crop(img, self.size, self.fill)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size})"
