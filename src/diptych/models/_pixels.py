"""What kind of numbers an image tensor holds: pixels of 0 to 255, or pixels that were normalized already.

Towers take both, uint8 and floating-point, so a cast (``x.float()``, ``x.half()``) would turn one into the other without a word.
Values say which they are; what they cannot be is an error. It normalizes nothing itself, and sees no file.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from diptych import log
from diptych.errors import ConfigError

SPREAD = 10.0  # normalized pixels lie within 3 or so; noise and sharpening add to that, never that much
STEP = 5e-3  # of a gray level: how far fp32 rounds what was a whole number
COARSE = {torch.float16: 0.03, torch.bfloat16: 0.15}  # of a gray level, for those that round more
EXPECTED = "expected uint8 pixels, or floats that were normalized with this model's mean and std"


def holds_pixels(images: Tensor, mean: Tensor, std: Tensor) -> bool:
    """Whether ``images`` [B, 3, H, W] are pixels of 0 to 255, whatever their type; False where they are normalized.

    Waits for the device, but for uint8. Raises ConfigError for values that are neither.
    """
    if images.dtype == torch.bool or images.is_complex():
        raise ConfigError(f"images of {_name(images)} were given; {EXPECTED}.")
    if not images.numel():
        return not images.is_floating_point()
    if not images.is_floating_point():
        least, most = (int(item) for item in images.to(torch.int64).aminmax())
        if least < 0 or most > 255:
            raise ConfigError(
                f"images of {_name(images)} from {least} to {most} were given; expected pixels of 0 to 255."
            )
        return True
    values = images.detach()
    low, high = (float(item) for item in values.aminmax())
    if not math.isfinite(low) or not math.isfinite(high):
        raise ConfigError(f"images with values that are not finite were given; {EXPECTED}.")
    if low < 0:
        _check_spread(low, high, mean, std)
        return False
    return _of_bright(values, low, high, mean, std)


def _of_bright(values: Tensor, low: float, high: float, mean: Tensor, std: Tensor) -> bool:
    """``holds_pixels`` of values without a negative one: cast pixels, pixels over 255, or bright ones that were normalized."""
    exact = values.double() if values.dtype == torch.float64 else values.float()
    step = COARSE.get(values.dtype, STEP)
    levels = (exact * std.to(exact) + mean.to(exact)) * 255
    if float(levels.max()) < 255.5 and _whole(levels, step):
        return False  # what normalizing 8-bit pixels gives, such as a white image of SigLIP's
    if high <= 255 and _whole(exact, 0.0) and (high > 1 or not high):
        _say(
            "images of floats that are whole numbers of 0 to 255 were given, and are taken as pixels, as uint8 is; floats "
            "mean pixels that were normalized"
        )
        return True
    if high <= 1 and (high == low == 1 or _are_fractions(values, exact)):
        raise ConfigError(
            f"images of {_name(values)} in 0 to 1 were given, pixels / 255 that were not normalized; {EXPECTED}: leave out the "
            "division, or subtract the mean and divide by the standard deviation."
        )
    if high <= 1 and high - low > 0.5:
        _say(
            "images of floats between 0 and 1 were given, and are taken as normalized; pixels belong in uint8, 0 to 255"
        )
    _check_spread(low, high, mean, std)
    return False


def _are_fractions(values: Tensor, exact: Tensor) -> bool:
    """Whether all are multiples of 1 / 255, so many different ones that it is no coincidence."""
    nearest = (exact * 255).round()
    if values.dtype in COARSE:  # near 1 these types hold hardly more than such multiples
        close = bool(((nearest / 255).to(values.dtype) == values).all())
        return close and len(nearest[exact < 0.25].unique()) >= 8
    return _whole(exact * 255, STEP)


def _check_spread(low: float, high: float, mean: Tensor, std: Tensor) -> None:
    largest = max(abs(low), abs(high))
    if largest <= SPREAD:
        return
    if largest > max(SPREAD, 4 * float(torch.maximum(mean, 1 - mean).div(std).max())):
        raise ConfigError(f"images of floats from {low:.4g} to {high:.4g} were given; {EXPECTED}.")


def _whole(values: Tensor, tolerance: float) -> bool:
    return bool(((values - values.round()).abs() <= tolerance).all())


def _name(images: Tensor) -> str:
    return str(images.dtype).removeprefix("torch.")


@cache
def _say(message: str) -> None:
    """Warn, the first time in a process."""
    log.warn(message)
