"""Pillow's changes of color and its blur, compiled for this processor by numba: the same bytes, several times as fast.

On planes, uint8 [3, h, w] of red, green and blue, which is how a resized crop comes and how a view goes: no copy is turned
around between. The arithmetic is that of Pillow's ``Blend.c``, ``Convert.c`` and ``BoxBlur.c`` for 8 bits, float32 where it
has float32; property tests hold that every byte is Pillow's. Nothing here is used before ``colors.compile_color_kernels`` has
imported it.
"""

import math

import numpy as np
from numba import njit, types

PASSES = 3  # box blurs that make a Gaussian
_planes = types.Array(types.uint8, 3, "C")
_plane = types.Array(types.uint8, 2, "C")
_bytes = types.Array(types.uint8, 1, "C")
_sums = types.Array(types.uint32, 1, "C")


def _hue_table() -> np.ndarray:
    """The byte of hue by sector, distance of the middle channel from the largest, and chroma: uint8 [6, 256, 256].

    A sector says which channel is largest and which smallest: 2 x (red, green, blue) plus 1 where the channel after it is not
    the smallest.
    """
    distance, chroma = np.arange(256, dtype=np.float32)[:, None], np.maximum(np.arange(256, dtype=np.float32), 1)[None]
    share = distance / chroma
    full = np.float32(1)
    # rc, gc, bc of Convert.c: the distances of red, green and blue from the largest, in chromas.
    sums = (share - full, full - share, 2.0 + np.float64(share) - 1.0, 3.0 - share.astype(np.float64),
            4.0 + np.float64(share) - 1.0, 5.0 - share.astype(np.float64))  # fmt: skip
    hues = [np.fmod(part.astype(np.float32).astype(np.float64) / 6.0 + 1.0, 1.0).astype(np.float32) for part in sums]
    return np.stack([(hue.astype(np.float64) * 255.0).astype(np.int64).clip(0, 255) for hue in hues]).astype(np.uint8)


def _saturation_table() -> np.ndarray:
    """The byte of saturation by largest channel and chroma, uint8 [256, 256]."""
    chroma, largest = np.arange(256, dtype=np.float32)[None], np.maximum(np.arange(256, dtype=np.float32), 1)[:, None]
    return ((chroma / largest).astype(np.float64) * 255.0).astype(np.int64).clip(0, 255).astype(np.uint8)


HUES, SATURATIONS = _hue_table(), _saturation_table()
_turns = np.arange(256, dtype=np.float32).astype(np.float64) * 6.0 / 255.0
SIXTHS = np.floor(_turns).astype(np.int64)
FRACTIONS = (_turns - SIXTHS.astype(np.float32)).astype(np.float32)
SHARES = (np.arange(256, dtype=np.float32).astype(np.float64) / 255.0).astype(np.float32)


@njit(cache=True, nogil=True, inline="always")
def blend(gray, value, factor):  # type: ignore[no-untyped-def]
    """gray + factor * (value - gray) in float32."""
    return np.float32(np.float32(gray) + factor * np.float32(value - gray))


@njit(cache=True, nogil=True, inline="always")
def truncated(value):  # type: ignore[no-untyped-def]
    """The byte of a blend."""
    return np.uint8(np.int32(min(max(value, np.float32(0.0)), np.float32(255.0))))


@njit(cache=True, nogil=True, inline="always")
def luma(red, green, blue):  # type: ignore[no-untyped-def]
    """Pillow's gray of a color, ITU-R 601 with 16 bits after the point."""
    total = np.int32(red) * np.int32(19595) + np.int32(green) * np.int32(38470) + np.int32(blue) * np.int32(7471)
    return np.uint8((total + np.int32(0x8000)) >> np.int32(16))


@njit(types.void(_planes, types.int64, types.float32), cache=True, nogil=True)
def _mapped(planes, gray, factor):  # type: ignore[no-untyped-def]
    table = np.empty(256, np.uint8)
    for value in range(256):
        table[value] = truncated(blend(gray, value, factor))
    flat = planes.reshape(-1)
    for index in range(flat.size):
        flat[index] = table[flat[index]]


@njit(types.void(_planes, types.float32), cache=True, nogil=True)
def brightness(planes, factor):  # type: ignore[no-untyped-def]
    """Blend with black, in place."""
    _mapped(planes, 0, factor)


@njit(types.void(_planes, types.float32), cache=True, nogil=True)
def contrast(planes, factor):  # type: ignore[no-untyped-def]
    """Blend with the mean gray, in place."""
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    total = np.int64(0)
    for index in range(red.size):
        total += luma(red[index], green[index], blue[index])
    _mapped(planes, int(total / red.size + 0.5), factor)


@njit(types.void(_planes, types.float32), cache=True, nogil=True)
def saturation(planes, factor):  # type: ignore[no-untyped-def]
    """Blend with the gray of each pixel, in place."""
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    for index in range(red.size):
        gray = np.int64(luma(red[index], green[index], blue[index]))
        red[index] = truncated(blend(gray, np.int64(red[index]), factor))
        green[index] = truncated(blend(gray, np.int64(green[index]), factor))
        blue[index] = truncated(blend(gray, np.int64(blue[index]), factor))


@njit(types.void(_planes), cache=True, nogil=True)
def grayscale(planes):  # type: ignore[no-untyped-def]
    """Every channel the gray of its pixel, in place."""
    red, green, blue = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    for index in range(red.size):
        gray = luma(red[index], green[index], blue[index])
        red[index] = green[index] = blue[index] = gray


@njit(cache=True, nogil=True, inline="always")
def rounded(value):  # type: ignore[no-untyped-def]
    """A value of 0 to 255 to the nearest byte, halves up."""
    return np.uint8(np.int32(value + 0.5))


@njit(types.void(_planes, types.int64), cache=True, nogil=True)
def hue(planes, turn):  # type: ignore[no-untyped-def]
    """To HSV, ``turn`` bytes further around the circle of hues, and back, in place: with Pillow's rounding on both ways."""
    reds, greens, blues = planes[0].reshape(-1), planes[1].reshape(-1), planes[2].reshape(-1)
    for index in range(reds.size):
        red, green, blue = reds[index], greens[index], blues[index]
        value, least = max(red, green, blue), min(red, green, blue)
        chroma = value - least
        color = np.int64(0)
        if chroma > 0:
            if red == value:
                color = HUES[0, value - blue, chroma] if green == least else HUES[1, value - green, chroma]
            elif green == value:
                color = HUES[2, value - red, chroma] if blue == least else HUES[3, value - blue, chroma]
            else:
                color = HUES[4, value - green, chroma] if red == least else HUES[5, value - red, chroma]
        share = SHARES[SATURATIONS[value, chroma]]
        if share == 0:
            reds[index] = greens[index] = blues[index] = value
            continue
        turned = (color + turn) & 255
        part, level = FRACTIONS[turned], np.float64(value)
        low = rounded(level * (1.0 - np.float64(share)))
        falling = rounded(level * (1.0 - np.float64(np.float32(share * part))))
        rising = rounded(level * (1.0 - np.float64(share) * (1.0 - np.float64(part))))
        sixth = SIXTHS[turned] % 6
        if sixth == 0:
            reds[index], greens[index], blues[index] = value, rising, low
        elif sixth == 1:
            reds[index], greens[index], blues[index] = falling, value, low
        elif sixth == 2:
            reds[index], greens[index], blues[index] = low, value, rising
        elif sixth == 3:
            reds[index], greens[index], blues[index] = low, falling, value
        elif sixth == 4:
            reds[index], greens[index], blues[index] = rising, low, value
        else:
            reds[index], greens[index], blues[index] = value, low, falling


def box_of(sigma: float) -> tuple[int, int, int]:
    """Of a Gaussian: the box's whole radius in pixels, the weight of its pixels and of the two at its ends, of 2^24."""
    variance = np.float32(np.float32(sigma) * np.float32(sigma)) / np.float32(PASSES)
    length = np.float32(math.sqrt(12.0 * float(variance) + 1.0))
    whole = np.float32(math.floor((float(length) - 1.0) / 2.0))
    unit, two, three, six = np.float32(1), np.float32(2), np.float32(3), np.float32(6)
    rest = (two * whole + unit) * (whole * (whole + unit) - three * variance)
    radius = whole + rest / (six * (variance - (whole + unit) * (whole + unit)))
    inner = int(np.float32(1 << 24) / (radius * two + unit))
    return int(radius), inner, ((1 << 24) - (int(radius) * 2 + 1) * inner) // 2


@njit(types.void(_sums, _bytes), cache=True, nogil=True)
def _add(totals, row):  # type: ignore[no-untyped-def]
    for x in range(totals.size):
        totals[x] = np.uint32(totals[x] + np.uint32(row[x]))


@njit(types.void(_sums, _bytes, _bytes, types.UniTuple(types.uint32, 2), _bytes), cache=True, nogil=True)
def _weighed(totals, first, last, weights, out):  # type: ignore[no-untyped-def]
    """The box's sum by the inner weight, the two beyond it by the outer one, rounded: -> out."""
    inner, outer, half, bits = weights[0], weights[1], np.uint32(1 << 23), np.uint32(24)
    for x in range(out.size):
        ends = np.uint32(np.uint32(first[x]) + np.uint32(last[x]))
        out[x] = np.uint8(np.uint32(np.uint32(totals[x] * inner) + np.uint32(ends * outer) + half) >> bits)


@njit(types.void(_plane, types.int64, types.UniTuple(types.uint32, 2)), cache=True, nogil=True)
def _blurred(plane, radius, weights):  # type: ignore[no-untyped-def]
    height, width = plane.shape
    reach, last = radius + 1, 2 * radius + 2
    totals, line = np.empty(width, np.uint32), np.empty(width + 2 * reach, np.uint8)
    for y in range(height):
        row = plane[y]
        for _ in range(PASSES):
            line[:reach] = row[0]
            line[reach : reach + width] = row
            line[reach + width :] = row[width - 1]
            totals[:] = np.uint32(0)
            for tap in range(1, last):
                _add(totals, line[tap : tap + width])
            _weighed(totals, line[:width], line[last : last + width], weights, row)
    rows = np.empty((height + 2 * reach, width), np.uint8)
    for _ in range(PASSES):
        for y in range(height + 2 * reach):
            rows[y] = plane[min(max(y - reach, 0), height - 1)]
        for y in range(height):
            totals[:] = np.uint32(0)
            for tap in range(1, last):
                _add(totals, rows[y + tap])
            _weighed(totals, rows[y], rows[y + last], weights, plane[y])


def blur(planes: np.ndarray, sigma: float) -> None:
    """Pillow's GaussianBlur, in place: three box blurs along the rows, three along the columns."""
    radius, inner, outer = box_of(sigma)
    for plane in planes:
        _blurred(plane, radius, (np.uint32(inner), np.uint32(outer)))
