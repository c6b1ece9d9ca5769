"""The text of a CSV: its separator, where its rows begin and end, and the fields of a row.

A field is quoted when it begins with a quote and a quote before the next separator closes it; every other quote is text. So
no stray quote swallows rows: a field that stays open goes on to the next line only as long as that line is no row by itself.
Knows no names of columns beyond those that make a header.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from diptych.data._columns import (
    CAPTION_KEYS,
    IMAGE_KEYS,
    LABEL_KEYS,
    LABEL_NAME_KEYS,
    SPLIT_KEY,
    plain_name,
    split_name,
)
from diptych.data._csv_standard import LINES, MARK, Layout, by_quotes, mark_of
from diptych.data._folder_walk import HEIC
from diptych.data._line_index import Built, check_encoding, line_bounds
from diptych.errors import SourceError
from diptych.image import image_endings

SEPARATORS = "\t,;|"
ADDRESSES = ("http://", "https://", "s3://", "gs://")
NAMES = frozenset(map(plain_name, (*IMAGE_KEYS, *CAPTION_KEYS, *LABEL_KEYS, *LABEL_NAME_KEYS, SPLIT_KEY, "url", "id")))


@cache
def _patterns(separator: str) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """A closed field, one whose quotes are escaped by backslashes, and one that is open to the end."""
    after = rf" *(?={re.escape(separator)}|\Z)"
    return (
        re.compile(r' *"([^"]*(?:""[^"]*)*)"' + after),
        re.compile(r' *"((?:[^"\\]|\\.)*)"' + after, re.DOTALL),
        re.compile(r' *"[^"]*(?:""[^"]*)*\Z'),
    )


def fields_of(text: str, separator: str) -> tuple[list[str], bool]:
    """The fields of a row, without blanks around those that are not quoted, and whether one of them is open to the end."""
    if '"' not in text:
        return [field.strip(" ") for field in text.split(separator)], False
    closed, escaped, opened = _patterns(separator)
    fields, position, is_open = [], 0, False
    while True:
        if match := closed.match(text, position):
            fields.append(match[1].replace('""', '"'))
            end = match.end()
        elif '\\"' in text and (match := escaped.match(text, position)):
            fields.append(re.sub(r'\\(["\\])', r"\1", match[1]))
            end = match.end()
        else:
            is_open = is_open or opened.match(text, position) is not None
            end = text.find(separator, position)
            end = len(text) if end < 0 else end
            fields.append(text[position:end].strip(" "))
        if end >= len(text):
            return fields, is_open
        position = end + 1


@cache
def _endings() -> tuple[str, ...]:
    """Those of all pictures; HEIC's too where no plug-in reads them, since a list names them nevertheless."""
    return (*image_endings(), *(f".{ending}" for ending in HEIC))


def is_picture(field: str) -> bool:
    """Whether a field is an image by its ending, or an address."""
    lowered = field.strip().lower()
    return lowered.endswith(_endings()) or lowered.startswith(ADDRESSES)


def is_header(fields: Sequence[str]) -> bool:
    """Whether the first row names columns: by a known name, or because nothing in it is a picture."""
    return any(plain_name(field) in NAMES for field in fields) or not any(map(is_picture, fields))


def first_row(path: Path) -> str:
    """The first line that is not blank. Raises SourceError for text of another encoding, naming what converts it."""
    with path.open("rb") as file:
        start = file.read(1 << 20)
    check_encoding(path, start)
    if b"\n" not in start and b"\r" in start.rstrip(b"\r"):
        raise SourceError(
            f"{path}: its lines end in CR alone; convert it: tr '\\r' '\\n' < {path.name} > utf8-{path.name}."
        )
    return (
        start.removeprefix(MARK)
        .lstrip()
        .partition(b"\n")[0]
        .decode("utf-8", errors="replace")
        .replace("\0", "")
        .rstrip("\r")
    )


def names_columns(path: Path) -> bool:
    """Whether a text file is a table: its first row names an image and something about it."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline(1 << 12).removeprefix(MARK).decode("utf-8", errors="replace").strip("\r\n")
    names = [{plain_name(field) for field in first.split(separator)} for separator in SEPARATORS]
    images, others = set(map(plain_name, IMAGE_KEYS)), set(map(plain_name, (*CAPTION_KEYS, *LABEL_KEYS)))
    return any(columns & images and columns & others for columns in names)


def separator_of(path: Path, asked: str) -> str:
    """The separator, as asked or by the first row. Raises SourceError."""
    if asked:
        separator = asked.replace("\\t", "\t")
        if len(separator) != 1:
            raise SourceError(f"--csv-separator {asked!r}: expected one character, or \\t.")
        return separator
    first = first_row(path)

    def fit(separator: str) -> tuple[int, int, bool, int]:
        fields = fields_of(first, separator)[0]
        known = len({plain_name(field) for field in fields} & NAMES)
        tabs = separator == "\t" and path.name.lower().endswith(".tsv") and len(fields) > 1
        return known, sum(map(is_picture, fields)) if len(fields) > 1 else 0, tabs, len(fields)

    return max(SEPARATORS, key=fit)


def build(path: Path, built: Built, layout: Layout) -> None:
    """Note where rows stand, and the split that each names.

    ``undecodable`` in the metadata counts lines that are not UTF-8.
    """
    wrong, header = 0, layout.header
    held_bounds, held, held_base = np.zeros((0, 2), dtype=np.int64), b"", 0
    pieces = itertools.chain(line_bounds(path), [None])
    for piece in pieces:
        bounds, text, base = piece or (np.zeros((0, 2), dtype=np.int64), b"", 0)
        wrong += _undecodable(text)
        if len(held_bounds):  # what was open at the end of the piece before
            bounds, text, base = np.concatenate([held_bounds, bounds]), held + text, held_base
        continued, decided = _continued(bounds, text, base, layout, last=piece is None)
        rows = _joined(bounds[:decided], continued[:decided], text, base)
        held_bounds = bounds[decided:]
        held_base = int(held_bounds[0, 0]) if len(held_bounds) else 0
        held = text[held_base - base :] if len(held_bounds) else b""
        if header and len(rows):
            rows, header = rows[1:], False
        codes = None
        if layout.split >= 0:
            texts = (_text(text[first - base : first - base + size]).rstrip("\r") for first, size in rows.tolist())
            fields = (fields_of(row, layout.separator)[0] for row in texts)
            codes = np.array(
                [built.code(split_name(row[layout.split] if len(row) > layout.split else None)) for row in fields]
            )
        built.append(rows, codes)
    built.metadata = {"undecodable": wrong}


def _joined(bounds: np.ndarray, continued: np.ndarray, text: bytes, base: int) -> np.ndarray:
    """Bounds of rows out of those of lines; blank lines are none."""
    begins = np.flatnonzero(~continued)
    if not len(begins):
        return bounds[:0]
    lasts = bounds[np.append(begins[1:], len(bounds)) - 1]
    rows = np.stack([bounds[begins, 0], lasts[:, 0] + lasts[:, 1] - bounds[begins, 0]], axis=1)
    data = np.frombuffer(text, dtype=np.uint8)
    first = data[np.minimum(rows[:, 0] - base, len(data) - 1)]
    rows_with_text: np.ndarray = rows[(rows[:, 1] > 1) | ((rows[:, 1] == 1) & (first != ord("\r")))]
    return rows_with_text


def _continued(bounds: np.ndarray, text: bytes, base: int, layout: Layout, *, last: bool) -> tuple[np.ndarray, int]:
    """Which lines go on with the row before, and how many lines are decided: an open row may end in the next piece."""
    separator, width = layout.separator, layout.width
    continued = np.zeros(len(bounds), dtype=bool)
    quotes = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord('"'))
    if not len(quotes):
        return continued, len(bounds)

    def row_alone(line: bytes) -> bool:
        return _is_row(_text(line).rstrip("\r"), separator, width)

    if (decision := by_quotes(bounds, text, base, layout, row_alone)) and (decision[1] == len(bounds) or not last):
        return decision
    begins = bounds[:, 0] - base
    marked = np.unique(np.searchsorted(begins, quotes, side="right") - 1).tolist()
    starts, ends = begins.tolist(), (begins + bounds[:, 1]).tolist()
    starts[0] += mark_of(text, base)

    def line(number: int) -> str:
        return _text(text[starts[number] : ends[number]]).rstrip("\r")

    if _all_closed([line(number) for number in marked], separator):
        return continued, len(bounds)
    if (decision := _by_the_standard([line(number) for number in range(len(bounds))], layout, last)) is not None:
        return decision
    after = 0  # the first line that no row has taken
    for number in marked:
        if number < after or not fields_of(joined := line(number), separator)[1]:
            continue
        for more in range(number + 1, number + LINES):
            if more >= len(bounds):
                if last:
                    break
                return continued, number
            if _is_row(added := line(more), separator, width):
                break
            joined += f"\n{added}"
            if '"' not in added:
                continue
            fields, is_open = fields_of(joined, separator)
            if not is_open:
                if len(fields) == width:
                    continued[number + 1 : more + 1], after = True, more + 1
                break
    return continued, len(bounds)


def _all_closed(lines: list[str], separator: str) -> bool:
    """Whether every line is a row by the strict rules of CSV: the fast way to learn that no field is open."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        return all(reader.line_num == number for number, _ in enumerate(reader, start=1)) and reader.line_num == len(
            lines
        )
    except csv.Error:
        return False


def _by_the_standard(lines: list[str], layout: Layout, last: bool) -> tuple[np.ndarray, int] | None:
    """The same as ``_continued`` where the file keeps the strict rules and no row takes a line that is one; else None."""
    continued, before = np.zeros(len(lines), dtype=bool), 0
    reader = csv.reader(lines, delimiter=layout.separator, strict=True)
    try:
        for row in reader:
            after = reader.line_num
            if after - before > 1:
                inside = range(before + 1, after)
                if len(row) != layout.width or any(
                    _is_row(lines[line], layout.separator, layout.width) for line in inside
                ):
                    return None
                continued[before + 1 : after] = True
            before = after
    except csv.Error:
        is_end = reader.line_num == len(lines) and len(lines) - before < LINES
        if last or not is_end or any(_is_row(line, layout.separator, layout.width) for line in lines[before + 1 :]):
            return None
        return continued, before
    return continued, len(lines)


def _is_row(line: str, separator: str, width: int) -> bool:
    if separator not in line:
        return False
    fields, is_open = fields_of(line, separator)
    return len(fields) == width > 1 and not is_open and any(map(is_picture, fields))


def _undecodable(text: bytes) -> int:
    """How many lines are not UTF-8."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return sum(not _decodes(line) for line in text.split(b"\n"))
    return 0


def _decodes(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _text(data: bytes) -> str:
    text = data.decode("utf-8", errors="replace")
    return text.replace("\0", "") if "\0" in text else text
