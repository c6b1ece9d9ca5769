"""Round tick values for an axis, and numbers as a reader wants them: few digits, thousands apart, a true minus sign.

Pure functions; nothing is drawn here.
"""

from __future__ import annotations

import math

THIN = "\u202f"  # a narrow space that does not break: between thousands, and before a unit
MINUS = "\u2212"
SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b⁰¹²³⁴⁵⁶⁷⁸⁹")


def nice_step(span: float, count: int) -> float:
    """The smallest of 1, 2, 2.5 or 5 times a power of ten that divides ``span`` into at most ``count`` parts."""
    if not (span > 0 and math.isfinite(span)):
        return 1.0
    rough = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= rough * (1 - 1e-9))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values that cover low..high: the first at or below ``low``, the last at or above ``high``.

    A range of one value, or too small beside its values for labels that differ, is widened.
    """
    size = max(abs(low), abs(high))
    if not high - low > 1e-4 * size:
        pad = 0.1 * size or 1.0
        low, high = low - pad, high + pad
    step = nice_step(high - low, count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def inner_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values inside low..high."""
    return [tick for tick in nice_ticks(low, high, count) if low - 1e-9 <= tick <= high + 1e-9]


def power_of(values: list[float]) -> int:
    """The power of ten to take out of an axis whose values are all tiny (a learning rate); 0 where none is needed."""
    top = max((abs(value) for value in values), default=0.0)
    return math.floor(math.log10(top)) if 0 < top < 0.005 else 0


def tick_labels(ticks: list[float]) -> list[str]:
    """Labels with the same number of decimals, just enough to distinguish the ticks."""
    top = max((abs(tick) for tick in ticks), default=0.0)
    unit, suffix = (1e6, "M") if top >= 1e6 else (1e3, "k") if top >= 1e4 else (1.0, "")
    scaled = [tick / unit for tick in ticks]
    decimals = next((d for d in range(10) if all(abs(round(tick, d) - tick) < 1e-9 for tick in scaled)), 10)
    return [f"{tick:,.{decimals}f}{suffix if tick else ''}".replace("-", MINUS).replace(",", THIN) for tick in scaled]


def brief(value: float) -> str:
    """A number in about three digits: 12 345, 81.3, 4.21, 0.052, 4.9×10⁻⁴."""
    size = abs(value)
    if size and size < 0.001:
        power = math.floor(math.log10(size))
        text = f"{value / 10.0**power:.2g}×10{str(power).translate(SUPERSCRIPTS)}"
    elif size >= 1000:
        text = f"{value:,.0f}".replace(",", THIN)
    else:
        decimals = 1 if size >= 10 else 2 if size >= 1 else 3
        text = f"{value:.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if decimals == 3 or value == int(value) else text
    return text.replace("-", MINUS)


def percent(fraction: float, unit: bool = True) -> str:
    """A fraction as a percentage with one decimal, two below one percent."""
    value = 100 * fraction
    text = f"{value:.1f}" if abs(value) >= 0.995 or value == 0 else f"{value:.2f}"
    return text.replace("-", MINUS) + (f"{THIN}%" if unit else "")


def count(value: float) -> str:
    """A whole number with its thousands apart; millions and more in short."""
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if value >= 10 * unit or (value >= unit and name == "billion"):
            return f"{value / unit:.1f} {name}"
    return f"{value:,.0f}".replace(",", THIN)


def duration(seconds: float) -> str:
    """Seconds as a person says it: 48 s, 3 min 20 s, 5 h 12 min, 2 d 4 h."""
    whole = round(seconds)
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((index for index, (amount, _) in enumerate(parts) if amount), len(parts) - 1)
    shown = [part for part in parts[first : first + 2] if part[0]] or [parts[-1]]
    return " ".join(f"{amount}{THIN}{unit}" for amount, unit in shown)
