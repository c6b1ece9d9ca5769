"""Whatever somebody calls an image to its pixels, uint8 [H, W, 3]: by the rules of ``decode``, so that one file has one look.

A file's path or bytes, a Pillow image of any mode, a numpy array with channels last, a torch tensor with channels first. What
could be read in two ways is an error of one line, never a guess.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from diptych.errors import RecordError
from diptych.image.decode import READ_ERRORS, SLACK, GrayError, decode_pixels, upright_rgb

KNOWN = "a Pillow image, a path, encoded bytes, an array [H, W, 3] or a tensor [3, H, W]"
AnyImage = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def pixels_of(image: AnyImage) -> np.ndarray:
    """The pixels uint8 [H, W, 3] of an image, upright, transparent parts white, 16-bit grays scaled.

    Of numbers: uint8, whole numbers of 0 to 255, 16-bit grays, truth values, or floats of 0 to 1; [H, W], or 1 to 4 channels
    (gray, gray and alpha, RGB, RGBA), last in an array and first in a tensor. Raises RecordError for anything else.
    """
    if (
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and image.size
    ):
        return image
    if isinstance(image, Image.Image):
        return _of_pillow(image)
    if isinstance(image, str | os.PathLike | bytes):
        return decode_pixels(image if isinstance(image, bytes) else os.fspath(image))
    if isinstance(image, Tensor):
        return _of_array(_channels_last(image))
    if isinstance(image, np.ndarray):
        return _of_array(image)
    raise RecordError("image", f"a {type(image).__name__} was given", f"expected one image: {KNOWN}")


def _of_pillow(image: Image.Image) -> np.ndarray:
    if not image.width or not image.height:
        raise RecordError("image", f"{image.width} x {image.height} pixels: nothing to see")
    name = str(getattr(image, "filename", "") or "image")
    try:
        return np.asarray(upright_rgb(image))
    except GrayError as error:
        raise RecordError(name, str(error), "give 8 or 16 bits, or floats of 0 to 1") from error
    except READ_ERRORS as error:  # a file that was opened, and is read only now
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecordError(name, f"damaged or truncated ({reason})", "download it again or remove it") from error


def _channels_last(tensor: Tensor) -> np.ndarray:
    if tensor.ndim == 3 and tensor.shape[0] not in MODES:
        raise _wrong_shape("a tensor", tensor.shape)
    values = tensor.detach().cpu()
    values = values.float() if values.is_floating_point() else values  # numpy has no bfloat16
    return np.asarray(values.movedim(0, -1) if values.ndim == 3 else values)


def _of_array(values: np.ndarray) -> np.ndarray:
    if values.ndim not in (2, 3) or not values.size or (values.ndim == 3 and values.shape[2] not in MODES):
        raise _wrong_shape("an array", values.shape)
    channels = values.shape[2] if values.ndim == 3 else 1
    plane = values.reshape(*values.shape[:2], channels)
    levels = _levels(plane)
    return _of_pillow(Image.fromarray(levels[..., 0] if channels == 1 else levels))


def _levels(values: np.ndarray) -> np.ndarray:
    """The numbers as bytes, [H, W, channels]; 16 bits are scaled as ``decode`` scales a gray image's."""
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if kind == "b":
        return values.astype(np.uint8) * 255
    if kind not in "iuf":
        raise RecordError("image", f"an array of {values.dtype} was given", "expected uint8, or floats of 0 to 1")
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)) or low < (-SLACK if kind == "f" else 0):
        raise _outside(values, low, high)
    if kind == "f":
        return _of_floats(values, low, high)
    # Small numbers of a 16-bit type are a dark image of 16 bits; in a wider type, only large ones can be of 16 bits.
    if values.dtype != np.uint16 and (high <= 255 or high > 65535 or values.shape[2] != 1):
        if high > 255:
            raise _outside(values, low, high)
        return values.astype(np.uint8)
    return np.rint(values / 257).astype(np.uint8)


def _of_floats(values: np.ndarray, low: Any, high: Any) -> np.ndarray:
    if high <= 1 + SLACK:
        return np.rint(values.clip(0, 1).astype(np.float64) * 255).astype(np.uint8)
    if low >= 0 and high <= 255 and bool((values == np.rint(values)).all()):
        return values.astype(np.uint8)  # bytes that were cast
    raise _outside(values, low, high)


def _wrong_shape(what: str, shape: Any) -> RecordError:
    advice = "expected one image: an array [H, W] or [H, W, 3], or a tensor [3, H, W]"
    return RecordError("image", f"{what} of shape {list(shape)} was given", advice)


def _outside(values: np.ndarray, low: Any, high: Any) -> RecordError:
    given = f"an array of {values.dtype} from {low:.4g} to {high:.4g} was given"
    return RecordError("image", given, "expected uint8, or floats of 0 to 1")
