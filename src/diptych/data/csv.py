"""CSV and TSV with a header: one caption per row, or a label; rows of one image share a group.

Separator and columns are detected, or taken from open_clip's flags. A quoted field may hold line breaks; a file with
stray quotes, which would swallow rows, is read without quoting instead. Every row is checked once, when the index of rows is
built; after that rows are read where they stand, so a file of any length costs no memory.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from diptych.data._base import SOURCES, LeftOut, SourceOptions
from diptych.data._columns import CAPTION_KEYS, IMAGE_KEYS, LABEL_KEYS, LABEL_NAME_KEYS, image_of, label_of
from diptych.data._index import Reader, checked_file
from diptych.data._line_index import Built, line_bounds, rows_of, selected_rows
from diptych.errors import SourceError
from diptych.types import Record

SEPARATORS = "\t,;|"
MARK = b"\xef\xbb\xbf"  # what spreadsheets put in front of UTF-8
PIECE = 1 << 13  # rows that are handed on at a time
Quoting = Literal[0, 3]


class RowError(NamedTuple):
    """The first row that does not fit the header: its number, from 1 with the header, and how many fields it has."""

    row: int
    fields: int


@SOURCES.register("csv")
class Csv:
    """A CSV or TSV file as a source."""

    priority: ClassVar[int] = 20
    example: ClassVar[str] = "pairs.csv or .tsv"
    classes: tuple[str, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()

    def __init__(self, spec: str, split: str, options: SourceOptions) -> None:
        self.path = checked_file(spec)
        self.name = self.path.name
        self.root = Path(options.image_root) if options.image_root else self.path.parent
        csv.field_size_limit(1 << 24)
        self._separator = _separator(self.path, options.csv_separator)
        self._rows = rows_of(
            self.path, f"csv {self._separator!r}", lambda path, built: _build(path, self._separator, built)
        )
        self._reader = Reader(self.path)
        self._quoting: Quoting = self._rows.metadata["quoting"]
        header: list[str] = self._rows.metadata["header"]
        self._width = len(header)
        self._image = self._column(header, options.csv_img_key, IMAGE_KEYS, "images", "--csv-img-key")
        lowered = [column.lower() for column in header]
        self._label = next((lowered.index(name) for name in LABEL_KEYS if name in lowered), -1)
        self._label_name = next((lowered.index(name) for name in LABEL_NAME_KEYS if name in lowered), -1)
        # A table of labels needs no captions.
        captionless = self._label >= 0 and not options.csv_caption_key and not set(CAPTION_KEYS) & set(lowered)
        self._caption = -1 if captionless else self._column(
            header, options.csv_caption_key, CAPTION_KEYS, "captions", "--csv-caption-key"
        )  # fmt: skip
        if not len(self._rows):
            raise SourceError(f"{self.path}: holds a header at most and no row.")
        self._selected = selected_rows(self._rows, split, str(self.path))
        self.classes = self._named_classes()

    @classmethod
    def matches(cls, spec: str) -> bool:
        """By the ending .csv or .tsv."""
        return spec.lower().endswith((".csv", ".tsv"))

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> Csv:
        """Open a file. Raises SourceError."""
        return cls(spec, split, options)

    def _column(self, header: list[str], asked: str, known: tuple[str, ...], what: str, flag: str) -> int:
        if asked:
            if asked not in header:
                raise SourceError(f"{self.path}: no column {asked!r} ({flag}); columns seen: {', '.join(header)}.")
            return header.index(asked)
        lowered = [column.lower() for column in header]
        for name in known:
            if name in lowered:
                return lowered.index(name)
        raise SourceError(f"{self.path}: no column for {what}; columns seen: {', '.join(header)}; name it with {flag}.")

    def __len__(self) -> int:
        return len(self._selected)

    def splits(self) -> dict[str, int]:
        """Sizes of the splits that a column "split" names."""
        return self._rows.splits()

    def record(self, index: int) -> Record:
        """One row; its key is the image and the row's number."""
        row = int(self._selected[index])
        fields = self._fields(row)
        given = fields[self._image]
        captions = (fields[self._caption],) if self._caption >= 0 else ()
        key, image = f"{given}#{row}", image_of(given, self.root)
        if self._label < 0:
            return Record(key, image, captions, group=given)
        value = fields[self._label].strip()
        label = self.classes.index(value) if self.classes else label_of(value)
        metadata = {"label_name": fields[self._label_name]} if self._label_name >= 0 else {}
        return Record(key, image, captions, label, given, metadata)

    def _named_classes(self) -> tuple[str, ...] | None:
        """The classes in sorted order, where the column of labels holds names and not numbers."""
        if self._label < 0 or self._fields(int(self._selected[0]))[self._label].strip().isdigit():
            return None
        return tuple(sorted({self._fields(int(row))[self._label].strip() for row in self._selected}))

    def _fields(self, row: int) -> list[str]:
        offset, size = map(int, self._rows.bounds[row])
        text = self._reader.read(offset, size).replace(b"\0", b"").decode("utf-8", errors="replace")
        fields = next(csv.reader(io.StringIO(text, newline="\n"), delimiter=self._separator, quoting=self._quoting), [])
        if len(fields) != self._width:
            raise SourceError(f"{self.path}, row {row + 2}: changed since the file was opened.")
        return fields


def _separator(path: Path, asked: str) -> str:
    if asked:
        separator = asked.replace("\\t", "\t")
        if len(separator) != 1:
            raise SourceError(f"--csv-separator {asked!r}: expected one character, or \\t.")
        return separator
    with path.open("rb") as file:
        first = file.readline(1 << 20).removeprefix(MARK).decode("utf-8", errors="replace").rstrip("\r\n")
    known = {*IMAGE_KEYS, *CAPTION_KEYS}

    def fit(separator: str) -> tuple[int, int]:
        try:
            columns = next(csv.reader([first], delimiter=separator), [])
        except csv.Error:  # a lone CR: reading the whole file raises a better error
            columns = []
        return len(known & {column.strip() for column in columns}), len(columns)

    return max(SEPARATORS, key=fit)


def _build(path: Path, separator: str, built: Built) -> None:
    """Check every row, decide about quotes, and note where rows stand."""
    quoted, several_lines = _first_error(path, separator, csv.QUOTE_MINIMAL)
    quoting: Quoting = csv.QUOTE_MINIMAL
    # A header in quotes means that quotes count; else a field over several lines may be a stray quote that swallows rows.
    if quoted or (several_lines and not _header_is_quoted(path)):
        plain, uneven = _first_error(path, separator, csv.QUOTE_NONE)
        if plain is None:
            quoting, quoted, several_lines = csv.QUOTE_NONE, None, uneven
    header = next(_parsed(path, separator, quoting), (0, []))[1]
    if quoted is not None:
        raise SourceError(
            f"{path}, row {quoted.row}: {quoted.fields} fields where the header has {len(header)} "
            f"(separator {separator!r}); set --csv-separator, or quote fields that contain it."
        )
    built.metadata = {"header": [column.strip() for column in header], "quoting": int(quoting)}
    if not several_lines and "split" not in built.metadata["header"]:
        _rows_are_lines(path, built)
        return
    lines = line_bounds(path)
    pending, past = np.zeros((0, 2), dtype=np.int64), 0  # bounds of lines not used yet, and how many came before them
    for piece in _pieces(path, separator, quoting, built.metadata["header"]):
        while past + len(pending) < piece.after[-1]:
            pending = np.concatenate([pending, next(lines)[0]])
        first, last = pending[piece.first - past], pending[piece.after - 1 - past]
        bounds = np.stack([first[:, 0], last[:, 0] + last[:, 1] - first[:, 0]], axis=1)
        built.append(bounds, np.array([built.code(name) for name in piece.splits]) if piece.splits else None)
        used = int(piece.after[-1]) - past
        pending, past = pending[used:], past + used


def _header_is_quoted(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline(1 << 16).removeprefix(MARK).lstrip().startswith(b'"')


def _rows_are_lines(path: Path, built: Built) -> None:
    """Every row stands on a line of its own: no row has to be looked into."""
    header = True
    for bounds, text, base in line_bounds(path):
        sizes, first = bounds[:, 1], np.frombuffer(text, dtype=np.uint8)
        single = first[np.minimum(bounds[:, 0] - base, len(first) - 1)]
        rows = bounds[(sizes > 1) | ((sizes == 1) & (single != ord("\r")))]
        if header and len(rows):
            rows, header = rows[1:], False
        built.append(rows)


class Piece(NamedTuple):
    """Some rows: the line that each begins on and the line after it, from 0; their splits, if the file has such a column."""

    first: np.ndarray
    after: np.ndarray
    splits: list[str]


def _pieces(path: Path, separator: str, quoting: Quoting, header: list[str]) -> Iterator[Piece]:
    column = header.index("split") if "split" in header else -1
    rows = _parsed(path, separator, quoting)
    next(rows, None)  # the header
    while taken := list(itertools.islice(rows, PIECE)):
        after = np.array([line for line, _ in taken])
        inside = np.array([sum(field.count("\n") for field in row) for _, row in taken])
        splits = [row[column] for _, row in taken] if column >= 0 else []
        yield Piece(after - 1 - inside, after, splits)


def _first_error(path: Path, separator: str, quoting: Quoting) -> tuple[RowError | None, bool]:
    """The first row that does not fit the header, if any, and whether some row does not stand on the line of its number."""
    width, several = -1, False
    for number, (line, row) in enumerate(_parsed(path, separator, quoting), start=1):
        if len(row) != width:
            if width >= 0:
                return RowError(number, len(row)), several
            width = len(row)
        if line != number:
            several = True
    return None, several


def _parsed(path: Path, separator: str, quoting: Quoting) -> Iterator[tuple[int, list[str]]]:
    """(lines read so far, fields) of every row that is not blank, the header first. Raises SourceError for what is no text."""
    with path.open("rb") as file:
        reader = csv.reader(_lines(path, file), delimiter=separator, quoting=quoting)
        try:
            for row in reader:
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise SourceError(f"{path}: not a readable CSV: {error}.") from error


def _lines(path: Path, file: io.BufferedReader) -> Iterator[str]:
    done = 0
    for number, line in enumerate(file):
        try:
            text = (line.removeprefix(MARK) if number == 0 else line).decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(f"{path}: not UTF-8 text (byte {done + error.start}); save it as UTF-8.") from error
        done += len(line)
        yield text.replace("\0", "")
