"""Pillow's antialiased resizing, compiled for this processor by numba: the same integers, several times as fast.

Each output value is a weighted sum of bytes: weights in 22 bits after the point, first along the rows and rounded to bytes,
then along the columns. Those are Pillow's rules (its ``Resample.c``, 8 bits per channel), so the pixels are Pillow's own, bit
for bit; a property test holds that. Nothing here is used before ``diptych.image.resize.compile_kernels`` has imported it, and
without numba nothing is lost but time. Widths and heights are in pixels; an image is uint8 [h, w, 3] of any strides.
"""

import math

import numpy as np
from numba import njit, types

BITS = np.int32(22)
HALF = np.int32(1 << 21)
LANES = 32  # rows that are resized side by side; measured: 16 and 64 are slower
KERNELS = {"bilinear": 1, "bicubic": 2, "lanczos": 3}  # the kernel's half width; its name in the code below

_picture = types.Array(types.uint8, 3, "A", readonly=True)
_table = types.Array(types.int32, 2, "C")


@njit(cache=True, nogil=True)
def weight(kernel: int, x: float) -> float:
    """The kernel's value at a distance of x pixels."""
    x = abs(x)
    if kernel == 1:
        return 1.0 - x if x < 1.0 else 0.0
    if kernel == 2:
        if x < 1.0:
            return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1.0
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 if x < 2.0 else 0.0
    if x >= 3.0:
        return 0.0
    if x == 0.0:
        return 1.0
    near, far = x * math.pi, x / 3.0 * math.pi
    return (math.sin(near) / near) * (math.sin(far) / far)


@njit(cache=True, nogil=True)
def taps(given: int, wanted: int, begin: int, end: int, kernel: int) -> np.ndarray:
    """Weights for the outputs begin to end of ``wanted``, int32 [end - begin, 2 + most]: first input, how many, weights."""
    scale = given / wanted
    stretch = max(scale, 1.0)
    reach = kernel * stretch
    most = math.ceil(reach) * 2 + 1
    table = np.zeros((end - begin, 2 + most), np.int32)
    exact = np.empty(most, np.float64)
    for output in range(begin, end):
        center = (output + 0.5) * scale
        first = max(int(center - reach + 0.5), 0)
        count = min(int(center + reach + 0.5), given) - first
        total = 0.0
        for tap in range(count):
            exact[tap] = weight(kernel, (tap + first - center + 0.5) * (1.0 / stretch))
            total += exact[tap]
        row = table[output - begin]
        row[0], row[1] = first, count
        for tap in range(count):
            share = exact[tap] / total if total != 0.0 else exact[tap]
            row[2 + tap] = int((-0.5 if share < 0 else 0.5) + share * (1 << 22))
    return table


@njit(cache=True, nogil=True, inline="always")
def byte(value: np.int32) -> np.uint8:
    """A sum with 22 bits after the point, to 0 ... 255."""
    return np.uint8(min(max(value >> BITS, np.int32(0)), np.int32(255)))


@njit(types.void(_picture, _table, types.Array(types.uint8, 2, "C")), cache=True, nogil=True)
def along_rows(image, table, out):  # type: ignore[no-untyped-def]
    """Resize every row: uint8 [h, w, 3] -> out, uint8 [h, 3 * W], one channel after the other."""
    height, width, wide = image.shape[0], image.shape[1], table.shape[0]
    # Some rows are turned on their side, so that one weight meets a long run of neighbors in memory.
    turned = np.zeros(width * 3 * LANES, np.uint8)
    sums = np.empty(3 * LANES, np.int32)
    done = np.empty(3 * wide * LANES, np.uint8)
    for top in range(0, height, LANES):
        rows = min(LANES, height - top)
        for row in range(rows):
            line = image[top + row]
            for x in range(width):
                for channel in range(3):
                    turned[(x * 3 + channel) * LANES + row] = line[x, channel]
        for x in range(wide):
            for lane in range(3 * LANES):
                sums[lane] = HALF
            for tap in range(table[x, 1]):
                share, column = table[x, 2 + tap], table[x, 0] + tap
                part = turned[column * (3 * LANES) : (column + 1) * (3 * LANES)]
                for lane in range(3 * LANES):
                    sums[lane] = np.int32(sums[lane] + np.int32(np.int32(part[lane]) * share))
            part = done[x * (3 * LANES) : (x + 1) * (3 * LANES)]
            for lane in range(3 * LANES):
                part[lane] = byte(sums[lane])
        for row in range(rows):
            line = out[top + row]
            for channel in range(3):
                for x in range(wide):
                    line[channel * wide + x] = done[(x * 3 + channel) * LANES + row]


@njit(
    types.void(types.Array(types.uint8, 2, "C"), types.int64, _table, types.Array(types.uint8, 3, "C")),
    cache=True,
    nogil=True,
)
def along_columns(lines, skipped, table, out):  # type: ignore[no-untyped-def]
    """Resize every column: lines, uint8 [h, 3 * W], the first of which is row ``skipped`` -> out, uint8 [3, H, W]."""
    length, wide = lines.shape[1], out.shape[2]
    sums = np.empty(length, np.int32)
    done = np.empty(length, np.uint8)
    for y in range(table.shape[0]):
        for x in range(length):
            sums[x] = HALF
        for tap in range(table[y, 1]):
            share, line = table[y, 2 + tap], lines[table[y, 0] + tap - skipped]
            for x in range(length):
                sums[x] = np.int32(sums[x] + np.int32(np.int32(line[x]) * share))
        for x in range(length):
            done[x] = byte(sums[x])
        # Not a slice: numba would compile the message of an error that cannot happen, which takes longer than all else here.
        for channel in range(3):
            for x in range(wide):
                out[channel, y, x] = done[channel * wide + x]


def resized(image: np.ndarray, size: tuple[int, int], part: tuple[int, int, int, int], kernel: str) -> np.ndarray:
    """uint8 [h, w, 3] resized to ``size`` (width, height), of which only ``part`` (left, top, right, bottom) is computed.

    Returns uint8 [3, bottom - top, right - left], contiguous.
    """
    height, width, channels = image.shape
    if channels != 3 or not (0 <= part[0] < part[2] <= size[0] and 0 <= part[1] < part[3] <= size[1]):
        raise ValueError(f"{channels} channels, part {part} of {size}: the code below would read beyond its arrays")
    left, top, right, bottom = part
    across = taps(width, size[0], left, right, KERNELS[kernel])
    down = taps(height, size[1], top, bottom, KERNELS[kernel])
    begin, end = int(down[0, 0]), int(down[:, :2].sum(1).max())
    lines = np.empty((end - begin, 3 * (right - left)), np.uint8)
    along_rows(image[begin:end], across, lines)
    out = np.empty((3, bottom - top, right - left), np.uint8)
    along_columns(lines, begin, down, out)
    return out
