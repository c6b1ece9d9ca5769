"""Changes of an image's colors by name, on planes of bytes: by Pillow, or by our compiled form of it, equal to the byte.

Which way was taken changes no pixel. A change is a name and an amount; what is drawn at random, and in which order, is a view's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from diptych.image.resize import WORTH, planar

Change = tuple[str, float]
_compiled: list[ModuleType] = []  # our kernels, once they are worth their import


def compile_color_kernels(images: int | None) -> None:
    """Make ``changed`` use the compiled kernels in this process and those forked from it, if numba is installed.

    ``images`` as in ``compile_kernels``: the first time on a machine it takes some ten seconds, later a fraction of one.
    """
    if (images is None or images >= WORTH) and not _compiled and (kernels := _import_kernels()) is not None:
        _compiled.append(kernels)


@cache
def _import_kernels() -> ModuleType | None:
    try:
        from diptych.image import _color_kernels
    except (ImportError, RuntimeError):  # as for the kernels of resizing
        return None
    return _color_kernels


def changed(planes: np.ndarray, changes: Sequence[Change]) -> np.ndarray:
    """uint8 [3, h, w] of red, green and blue after the changes in their order, uint8 [3, h, w], contiguous.

    "brightness", "contrast" and "saturation" by a factor, "hue" by turns of the circle, -0.5 to 0.5, "gray", "blur" by a standard
    deviation in pixels, "mirror", and "solarize" from a value: Pillow's ImageEnhance, 8-bit HSV, "L", GaussianBlur, ImageOps.
    """
    if not changes:
        return planes
    if not _compiled:
        return _by_pillow(planes, changes)
    if planes.base is not None:
        planes = planes.copy()  # of somebody else's pixels: the kernels work in place
    for name, amount in changes:
        planes = _by_kernels(_compiled[0], planes, name, amount)
    return planes


def _by_kernels(kernels: ModuleType, planes: np.ndarray, name: str, amount: float) -> np.ndarray:
    if name == "mirror":
        return np.ascontiguousarray(planes[:, :, ::-1])
    if name == "solarize":
        return np.where(planes < amount, planes, 255 - planes)
    if name == "hue":
        kernels.hue(planes, turn_of(amount))
    elif name == "gray":
        kernels.grayscale(planes)
    elif name == "blur":
        kernels.blur(planes, amount)
    else:
        getattr(kernels, name)(planes, np.float32(amount))
    return planes


def _by_pillow(planes: np.ndarray, changes: Sequence[Change]) -> np.ndarray:
    image = Image.merge("RGB", [Image.fromarray(plane) for plane in planes])
    for name, amount in changes:
        image = _PILLOW[name](image, amount)
    return planar(np.asarray(image))


def turn_of(shift: float) -> int:
    """A shift in turns of the circle as bytes of hue, 0 to 255: rounded towards 0, as torchvision has it."""
    return int(shift * 255) % 256


def shift_hue(image: Image.Image, shift: float) -> Image.Image:
    """Turn the hue of an RGB image by ``shift`` of the color circle, -0.5 to 0.5, in Pillow's 8-bit HSV.

    The same rounding as torchvision's ``adjust_hue`` of Pillow images, which published augmentations ran with.
    """
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(turn_of(shift))  # uint8 wraps around the circle
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


_PILLOW: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "hue": shift_hue,
    "gray": lambda image, _: image.convert("L").convert("RGB"),
    "blur": lambda image, sigma: image.filter(ImageFilter.GaussianBlur(sigma)),
    "mirror": lambda image, _: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "solarize": lambda image, least: image.point([value if value < least else 255 - value for value in range(256)] * 3),
}
