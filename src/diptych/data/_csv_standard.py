"""Rows of a CSV that keeps the standard, without reading its lines one by one: every quote opens a field or closes one.

A quote that opens stands behind a separator, a line break or the quote that it doubles; one that closes, before one of those.
Where a piece of a file has any other quote, nothing is decided here, and ``_csv_rows`` goes line by line. Tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

MARK = b"\xef\xbb\xbf"  # what spreadsheets put in front of UTF-8
LINES = 400  # that one row may have
QUOTE, BREAK, RETURN = ord('"'), ord("\n"), ord("\r")


class Layout(NamedTuple):
    """How many columns a file has, whether its first row names them, and which one is the split (-1: none)."""

    separator: str
    width: int
    header: bool
    split: int


def by_quotes(
    bounds: np.ndarray, text: bytes, base: int, layout: Layout, is_row: Callable[[bytes], bool]
) -> tuple[np.ndarray, int] | None:
    """Which lines go on with the row before, and how many are decided; None for a piece that does not keep the standard.

    bounds: int64 [k, 2], offset and size of lines in ``text``, which begins at ``base``. A row that is open at the end is not
    decided. ``is_row`` is asked of the lines inside of rows: where one is a row by itself, the quotes around it close nothing.
    """
    if not layout.separator.isascii():
        return None
    data = np.frombuffer(text, dtype=np.uint8)
    quotes = np.flatnonzero(data == QUOTE)
    if not _is_standard(data, quotes, ord(layout.separator), mark_of(text, base)):
        return None
    begins = bounds[:, 0] - base
    ends = begins + bounds[:, 1]
    continued = np.searchsorted(quotes, begins) % 2 == 1
    firsts = np.flatnonzero(~continued)
    decided = int(firsts[-1]) if len(quotes) % 2 else len(bounds)
    if len(bounds) - decided >= LINES:
        return None
    if not continued.any():
        return continued, decided
    separators = np.flatnonzero(data == ord(layout.separator))
    inside = np.flatnonzero(continued)
    enough = np.searchsorted(separators, ends[inside]) - np.searchsorted(separators, begins[inside]) >= layout.width - 1
    if any(is_row(text[begins[line] : ends[line]]) for line in inside[enough].tolist()):
        return None
    outside = separators[np.searchsorted(quotes, separators) % 2 == 0]
    fields = np.diff(np.append(np.searchsorted(outside, begins[firsts]), len(outside))) + 1
    several = (np.diff(np.append(firsts, len(bounds))) > 1) & (firsts < decided)
    return (continued, decided) if (fields[several] == layout.width).all() else None


def mark_of(text: bytes, base: int) -> int:
    """The size of the mark that a file's first piece begins with."""
    return len(MARK) if base == 0 and text.startswith(MARK) else 0


def _is_standard(data: np.ndarray, quotes: np.ndarray, separator: int, start: int) -> bool:
    """Whether quotes open and close fields in turn; ``start`` is where the text begins behind its mark."""
    opening, closing = quotes[::2], quotes[1::2]
    doubled = opening[1:] == closing[: len(opening) - 1] + 1  # by the quote before it, which closes and does not
    behind = data[opening - 1]
    opens = (behind == separator) | (behind == BREAK)
    opens[1:] |= doubled
    if len(opening) and opening[0] in (0, start):
        opens[0] = opening[0] == start
    after, later = _at(data, closing + 1), _at(data, closing + 2)
    closes = (after == separator) | (after == BREAK) | ((after == RETURN) & (later == BREAK))
    closes[: len(doubled)] |= doubled
    return bool(opens.all() and closes.all())


def _at(data: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The bytes there; behind the end, line breaks."""
    bytes_there: np.ndarray = np.where(positions < len(data), data[np.minimum(positions, len(data) - 1)], BREAK)
    return bytes_there
