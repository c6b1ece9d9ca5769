"""An encoded image to RGB, or an error of one line that says why not.

Handles what real files have: EXIF rotation, alpha (laid on white), palettes, CMYK, 16-bit grays (scaled, not clipped),
animations (the first frame). An image that is truncated, of an unknown format, or larger than the limit is a RecordError
before it costs memory. Plain JPEGs go through simplejpeg where it is installed, which gives the same pixels faster.
"""

from __future__ import annotations

import io
import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diptych.errors import RecordError
from diptych.files import StrPath
from diptych.image._endings import register_heic

MAX_PIXELS = 178_956_970  # as Pillow's own warning limit: a quarter of a gigabyte of RGB, more than any photo
_EXIF_ORIENTATION = 0x0112
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
READ_ERRORS = (
    OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, EOFError, RuntimeError,
)  # fmt: skip
"""What Pillow's readers raise on damaged files, by their documentation and by fuzzing."""
SLACK = 1e-3  # how far resizing in floating point leaves a range
JPEG, EXIF = b"\xff\xd8", b"Exif\0\0"


class GrayError(ValueError):
    """Gray values that no rule makes pixels of."""


class Decoded(NamedTuple):
    """``pixels`` uint8 [H, W, 3] and, where parts of the file are damaged and were filled in, ``damage`` in a few words."""

    pixels: np.ndarray
    damage: str = ""


def decode_image(source: StrPath | bytes, key: str = "", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a file's path or bytes into an RGB image, upright. Raises RecordError, whose ``key`` names the file."""
    name = key or ("image" if isinstance(source, bytes) else os.fspath(source))
    data = _whole(source, name)
    plain = _plain_jpeg(data, max_pixels)
    return Image.fromarray(plain) if plain is not None else _by_pillow(data, name, max_pixels)[0]


def decode_pixels(source: StrPath | bytes, key: str = "", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The same image as an array, uint8 [H, W, 3]: saves two copies when no Pillow image is needed."""
    return decode(source, key, max_pixels).pixels


def decode(source: StrPath | bytes, key: str = "", max_pixels: int = MAX_PIXELS, strict: bool = False) -> Decoded:
    """The same array, and whether the file is damaged; ``strict`` makes that a RecordError.

    A JPEG with damaged data still decodes: libjpeg warns and fills in gray. Pillow does not pass the warning on, so it is seen
    only where simplejpeg is installed (``diptych[fast]``).
    """
    name = key or ("image" if isinstance(source, bytes) else os.fspath(source))
    data = _whole(source, name)
    plain = _plain_jpeg(data, max_pixels)
    if plain is not None:
        return Decoded(plain)
    image, damage = _by_pillow(data, name, max_pixels)
    if damage and strict:
        raise RecordError(name, f"damaged JPEG data ({damage})", "download it again, or leave --bad-samples-strict out")
    return Decoded(np.asarray(image), damage)


def _jpeg_damage(data: bytes) -> str:
    """What libjpeg warns of, empty without a warning: of JPEGs that the fast way left to Pillow."""
    library = _simplejpeg()
    if library is None:
        return ""
    try:
        # A small picture is enough: the whole stream is read, and the inverse transform is most of the work.
        library.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        reason = str(error).splitlines()[0] if str(error) else "its data is damaged"
        try:  # a variant that the library does not read is no damage
            library.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8, strict=False)
        except ValueError:
            return ""
        return reason
    return ""


def _whole(source: StrPath | bytes, name: str) -> bytes:
    data = source if isinstance(source, bytes) else _read(Path(source), name)
    if not data:
        raise RecordError(name, "the image file is empty (0 bytes)", "download it again or remove it")
    return data


def _plain_jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """The pixels of an upright three-channel JPEG by libjpeg-turbo; None leaves it to Pillow, which also gives the errors."""
    library = _simplejpeg()
    if library is None or not data.startswith(JPEG) or EXIF in data:
        return None
    try:
        height, width, colors, _ = library.decode_jpeg_header(data)
        if colors != "YCbCr" or not 0 < width * height <= max_pixels:
            return None
        pixels: np.ndarray = library.decode_jpeg(data, colorspace="RGB")
        return pixels
    except ValueError:
        return None  # damaged, or a variant that it does not read


def _by_pillow(data: bytes, name: str, max_pixels: int) -> tuple[Image.Image, str]:
    """The image, and what is damaged in it."""
    try:
        register_heic()
        with warnings.catch_warnings():
            # Pillow warns of large images and odd metadata; size is checked below, by our own limit.
            warnings.simplefilter("ignore")
            return _decode(data, name, max_pixels)
    except UnidentifiedImageError as error:
        raise RecordError(
            name, f"not an image that can be read ({_content(data)})", "remove it or convert it"
        ) from error
    except Image.DecompressionBombError as error:
        raise RecordError(name, f"larger than {max_pixels:,} pixels", "shrink it or remove it") from error
    except GrayError as error:
        raise RecordError(name, str(error), "write it with 8 or 16 bits, or as floats of 0 to 1") from error
    except READ_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RecordError(name, f"damaged or truncated ({reason})", "download it again or remove it") from error


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RecordError(name, f"no such image file: {path}", "check the paths, or give --image-root") from error
    except OSError as error:
        raise RecordError(name, f"the image file cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL, or half of a character, inside
        raise RecordError(name[:80].replace("\0", " "), "its image cannot be a path", "fix the list") from error


def _content(data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        return "it is HEIC, which Pillow reads with a plug-in: pip install pillow-heif"
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "it looks like a web page, not an image"
    return f"it begins with {data[:8]!r}"


def _decode(data: bytes, name: str, max_pixels: int) -> tuple[Image.Image, str]:
    with Image.open(io.BytesIO(data)) as opened:
        width, height = opened.size
        if width * height > max_pixels:
            raise RecordError(name, f"{width} x {height} pixels, more than the limit of {max_pixels:,}", "shrink it")
        if width < 1 or height < 1:
            raise RecordError(name, f"{width} x {height} pixels: nothing to see")
        orientation = opened.getexif().get(_EXIF_ORIENTATION, 1)
        fast = _fast_jpeg(data, opened)
        if fast is not None:
            return fast if orientation == 1 else _upright(fast, orientation), ""
        return upright_rgb(opened), _jpeg_damage(data) if data.startswith(JPEG) else ""


def _fast_jpeg(data: bytes, opened: Image.Image) -> Image.Image | None:
    """The image by libjpeg-turbo, if it is a three-channel JPEG; None leaves it to Pillow."""
    library = _simplejpeg()
    if library is None or opened.format != "JPEG" or opened.mode != "RGB":
        return None
    try:
        return Image.fromarray(library.decode_jpeg(data, colorspace="RGB"))
    except ValueError:
        # Damaged, or a variant that it does not read: Pillow decides, and gives the error.
        return None


@cache
def _simplejpeg() -> Any:
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = orientation
    image.getexif().update(exif)
    return ImageOps.exif_transpose(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """An opened image of any mode, whose EXIF may say that it lies on its side, to RGB; transparent parts become white."""
    image.load()
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return _rgb(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I") or image.mode == "F":
        return _gray_of_high_depth(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(page, layer).convert("RGB")
    return image.convert("RGB")


def _gray_of_high_depth(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips at 255, which turns a 16-bit gray image white.
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(initial=0), values.max(initial=0)
    most = 65535 if image.mode.startswith("I") else 255
    if not (np.isfinite(low) and np.isfinite(high)) or low < -SLACK or high > most + SLACK:
        raise GrayError(f"gray values from {low:.5g} to {high:.5g}, and they end at {most}")
    if image.mode.startswith("I;16") or (image.mode == "I" and high > 255):
        values = values / 257
    elif image.mode == "F" and high <= 1 + SLACK:
        values = values * 255
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
