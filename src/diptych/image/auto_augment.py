"""AutoAugment's policy for ImageNet (Cubuk et al. 2019, "AutoAugment: Learning Augmentation Policies from Data"), by Pillow.

25 pairs of operations, each operation with a probability and a strength of 0 to 9; an image gets one pair, drawn uniformly. The
strengths are torchvision's tables, and each operation is the Pillow call that torchvision makes of it for Pillow images: equal
pixels. What a rotation or a shear uncovers is gray, 128, as the Flickr8k recipe of source 003 has it (torchvision's default is
black). No crop, no mirror and no option here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

GRAY = (128, 128, 128)
STRENGTHS = 10
Operation = Callable[[Image.Image, float], Image.Image]


def _enhanced(change: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, strength: change(image).enhance(1.0 + strength)


def _sheared(image: Image.Image, strength: float) -> Image.Image:
    matrix = (1.0, strength, 0.0, 0.0, 1.0, 0.0)
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.NEAREST, fillcolor=GRAY
    )


def _rotated(image: Image.Image, strength: float) -> Image.Image:
    return image.rotate(strength, resample=Image.Resampling.NEAREST, fillcolor=GRAY)


OPERATIONS: dict[str, tuple[Operation, tuple[float, float] | None, bool]] = {
    "shear": (_sheared, (0.0, 0.3), True),
    "rotate": (_rotated, (0.0, 30.0), True),
    "color": (_enhanced(ImageEnhance.Color), (0.0, 0.9), True),
    "contrast": (_enhanced(ImageEnhance.Contrast), (0.0, 0.9), True),
    "sharpness": (_enhanced(ImageEnhance.Sharpness), (0.0, 0.9), True),
    "posterize": (lambda image, bits: ImageOps.posterize(image, 8 - round(bits)), (0.0, 4.0), False),
    "solarize": (ImageOps.solarize, (255.0, 0.0), False),  # type: ignore[dict-item]
    "autocontrast": (lambda image, _: ImageOps.autocontrast(image), None, False),
    "equalize": (lambda image, _: ImageOps.equalize(image), None, False),
    "invert": (lambda image, _: ImageOps.invert(image), None, False),
}
"""Name -> the operation, what its strengths 0 and 9 mean (evenly between them), and whether its sign is drawn."""

Step = tuple[str, float, int]
POLICY: tuple[tuple[Step, Step], ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 0)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 0), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 0)),
    (("equalize", 0.0, 0), ("equalize", 0.8, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear", 0.6, 5), ("equalize", 1.0, 0)),
    (("color", 0.4, 0), ("equalize", 0.6, 0)),
    (("equalize", 0.4, 0), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalize", 1.0, 0)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 0), ("equalize", 0.6, 0)),
)
"""The published pairs, some of which stand twice: (operation, probability, strength)."""


def auto_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An RGB image after one pair of the policy; all randomness from ``rng``: the pair, two draws, two signs."""
    pair = POLICY[int(rng.integers(len(POLICY)))]
    draws, signs = rng.random(2), rng.integers(2, size=2)
    for (name, probability, strength), draw, sign in zip(pair, draws.tolist(), signs.tolist(), strict=True):
        if draw < probability:
            image = OPERATIONS[name][0](image, magnitude(name, strength, bool(sign)))
    return image


def magnitude(name: str, strength: int, positive: bool = True) -> float:
    """What a strength of 0 to 9 is for an operation: degrees, a share, bits that are lost, a threshold."""
    _, ends, signed = OPERATIONS[name]
    if ends is None:
        return 0.0
    value = ends[0] + (ends[1] - ends[0]) * strength / (STRENGTHS - 1)
    return -value if signed and not positive else value
