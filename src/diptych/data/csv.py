"""CSV and TSV with a header: one caption per row; rows of one image are told to be one picture.

Separator and columns are found by themselves, or taken from open_clip's flags. A quoted field may hold line breaks; a file
with stray quotes, which would swallow rows, is read without quoting instead. Rows are held in memory.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Literal

import numpy as np

from diptych.data import SOURCES, SourceOptions
from diptych.data._fields import CAPTION_KEYS, IMAGE_KEYS, chosen_split, image_path
from diptych.data._index import checked_file
from diptych.errors import SourceError
from diptych.types import Record

SEPARATORS = "\t,;|"


@SOURCES.register("csv")
class Csv:
    """A CSV or TSV file as a source."""

    classes: tuple[str, ...] | None = None

    def __init__(self, spec: str, split: str, options: SourceOptions) -> None:
        self.path = checked_file(spec)
        self.name = self.path.name
        self.root = Path(options.image_root) if options.image_root else self.path.parent
        text = self._text()
        separator = self._separator(text, options.csv_separator)
        header, rows = self._rows(text, separator)
        image = self._column(header, options.csv_img_key, IMAGE_KEYS, "images", "--csv-img-key")
        caption = self._column(header, options.csv_caption_key, CAPTION_KEYS, "captions", "--csv-caption-key")
        self._images = [row[image] for row in rows]
        self._captions = [row[caption] for row in rows]
        of_row = np.array([row[header.index("split")] for row in rows]) if "split" in header else np.full(len(rows), "")
        self._splits = {name: int((of_row == name).sum()) for name in sorted(set(of_row.tolist())) if name}
        self._kept = np.arange(len(rows)) if not split else chosen_split(of_row, split, self._splits, str(self.path))

    @staticmethod
    def matches(spec: str) -> bool:
        """By the ending .csv or .tsv."""
        return spec.lower().endswith((".csv", ".tsv"))

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> Csv:
        """Open a file. Raises SourceError."""
        return cls(spec, split, options)

    def _text(self) -> str:
        try:
            # utf-8-sig drops the mark that spreadsheets put in front.
            return self.path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.path}: not UTF-8 text (byte {error.start}); save it as UTF-8.") from error

    def _separator(self, text: str, asked: str) -> str:
        if asked:
            separator = asked.replace("\\t", "\t")
            if len(separator) != 1:
                raise SourceError(f"--csv-separator {asked!r}: expected one character, or \\t.")
            return separator
        first = text.partition("\n")[0].rstrip("\r")
        known = {*IMAGE_KEYS, *CAPTION_KEYS}

        def fit(separator: str) -> tuple[int, int]:
            columns = next(csv.reader([first], delimiter=separator), [])
            return len(known & {column.strip() for column in columns}), len(columns)

        return max(SEPARATORS, key=fit)

    def _rows(self, text: str, separator: str) -> tuple[list[str], list[list[str]]]:
        quoted = self._parsed(text, separator, csv.QUOTE_MINIMAL)
        header = [column.strip() for column in quoted[0]] if quoted else []
        if any(len(row) != len(header) or any("\n" in field for field in row) for row in quoted):
            plain = self._parsed(text, separator, csv.QUOTE_NONE)
            if all(len(row) == len(plain[0]) for row in plain):
                quoted = plain
        rows = quoted[1:]
        if not rows:
            raise SourceError(f"{self.path}: holds a header at most and no row.")
        for number, row in enumerate(rows, start=2):
            if len(row) != len(header):
                raise SourceError(
                    f"{self.path}, row {number}: {len(row)} fields where the header has {len(header)} "
                    f"(separator {separator!r}); set --csv-separator, or quote fields that contain it."
                )
        return header, rows

    def _parsed(self, text: str, separator: str, quoting: Literal[0, 3]) -> list[list[str]]:
        csv.field_size_limit(1 << 24)
        lines = io.StringIO(text, newline="")
        try:
            return [row for row in csv.reader(lines, delimiter=separator, quoting=quoting) if row]
        except csv.Error as error:
            raise SourceError(f"{self.path}: not a readable CSV: {error}.") from error

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
        return len(self._kept)

    def splits(self) -> dict[str, int]:
        """Sizes of the splits that a column "split" names."""
        return self._splits

    def record(self, index: int) -> Record:
        """One row; its key is the image and the row's number."""
        row = int(self._kept[index])
        given = self._images[row]
        return Record(f"{given}#{row}", image_path(given, self.root), (self._captions[row],), group=given)
