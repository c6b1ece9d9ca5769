"""Sizes of memory as people write them: read from an option, and said in a message."""

from __future__ import annotations

import math
import re

from diptych.errors import ConfigError

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_memory(text: str, flag: str = "--memory") -> int:
    """``80GB`` (10^9 bytes each), ``80GiB`` (2^30) or a number of bytes. Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None or not float(match.group(1)):
        raise ConfigError(f"{flag} {text!r}: expected a number with a unit, such as 80GB or 80GiB.")
    return int(float(match.group(1)) * unit)


def at_least(size: float) -> str:
    """An option's value of three digits that is no less than ``size`` bytes: 51.7GB."""
    step = 10.0 ** (math.floor(math.log10(size)) - 2)
    return human(math.ceil(size / step) * step).replace(" ", "")


def human(size: float) -> str:
    """Bytes as people write them, in powers of ten: 6.85 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"
