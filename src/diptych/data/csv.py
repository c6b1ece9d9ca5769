"""CSV and TSV: one caption per row, several in columns, or a label; rows of one image share a group.

Separator and columns are detected, or taken from open_clip's flags; a file without a header is named by --csv-columns. Rows are
indexed once (``_csv_rows``) and read where they stand, so a file of any length costs no memory. A row that does not fit its
header is a bad sample with its line, and never refuses the file. Which column means what is decided in ``_fields``.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from diptych.data._base import SOURCES, LeftOut, SourceOptions
from diptych.data._columns import image_of, plain_name, seen
from diptych.data._csv_rows import (
    MARK,
    Layout,
    build,
    fields_of,
    first_row,
    is_header,
    is_picture,
    names_columns,
    separator_of,
)
from diptych.data._fields import decide, say, split_column
from diptych.data._index import Reader, checked_file
from diptych.data._label_values import class_names
from diptych.data._line_index import Built, conversion, line_number, rows_of, selected_rows
from diptych.data._roots import root_of
from diptych.data._sample import sampled
from diptych.errors import RecordError, SourceError
from diptych.types import Record

MOST_WRONG = 0.01  # of rows that may be no UTF-8 before the whole file is of another encoding


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
        first = first_row(self.path)
        self._separator = separator = separator_of(self.path, options.csv_separator)
        self._header, headed = self._columns(fields_of(first, separator)[0], options)
        width = len(self._header)
        column = split_column(self._header)
        code = self._header.index(column) if column else -1
        self._reader = Reader(self.path)
        self._rows = rows_of(
            self.path,
            f"csv 3 {separator!r} {width} {headed} {code}",
            lambda path, built: build(path, built, Layout(separator, width, headed, code)),
        )
        if not len(self._rows):
            raise SourceError(f"{self.path}: holds a header at most and no row.")
        if self._rows.metadata["undecodable"] > MOST_WRONG * len(self._rows):
            raise SourceError(f"{self.path}: not UTF-8 text; if it is of Windows, convert it: {self._conversion()}.")
        question = f"; is the separator {separator!r} right (--csv-separator)?"
        sample = sampled(len(self._rows), self._row, question)
        self._fields = decide(sample, str(self.path), options)
        self.root = root_of(self.path, options.image_root, self._fields.paths(sample))
        self._selected = selected_rows(self._rows, split, str(self.path))
        if self._fields.named:
            label = self._fields.label
            stored = rows_of(
                self.path, f"csv 3 {separator!r} classes {label}", lambda _, built: self._find_classes(label, built)
            )
            self._fields = self._fields.with_classes(stored.metadata["classes"])
        self.classes = self._fields.classes

    @classmethod
    def matches(cls, spec: str) -> bool:
        """By the ending .csv or .tsv; a .txt (Kaggle's captions.txt) by a first row that names columns."""
        return spec.lower().endswith((".csv", ".tsv")) or (spec.lower().endswith(".txt") and names_columns(Path(spec)))

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> Csv:
        """Open a file. Raises SourceError."""
        return cls(spec, split, options)

    def _columns(self, first: list[str], options: SourceOptions) -> tuple[list[str], bool]:
        """The names of the columns, each once, and whether the first row is a header. Raises SourceError for none."""
        asked = [plain_name(name) for name in (options.csv_img_key, options.csv_caption_key) if name]
        headed = is_header(first) or any(plain_name(name) in asked for name in first)
        names = first
        if options.csv_columns:
            names = [name.strip() for name in options.csv_columns.split(",")]
            if len(names) != len(first):
                raise SourceError(
                    f"{self.path}: --csv-columns names {len(names)} columns, and the first row has {len(first)} "
                    f"(separator {self._separator!r}): {seen(first)}."
                )
            if headed:
                say(f"{self.path}: the names of --csv-columns stand for those of its header ({seen(first)})")
        elif not headed:
            guess = ",".join("filepath" if is_picture(field) else "title" for field in first)
            raise SourceError(
                f"{self.path}: has no header, its first row is data ({seen(first)}); name the columns, as in "
                f"--csv-columns {guess}."
            )
        unique: list[str] = []
        for name in names:
            number = 1 + sum(known == name or known.startswith(f"{name}_") for known in unique)
            unique.append(name if name not in unique else f"{name}_{number}")
        return unique, headed

    def __len__(self) -> int:
        return len(self._selected)

    def splits(self) -> dict[str, int]:
        """Sizes of the splits that a column "split" names."""
        return self._rows.splits()

    def record(self, index: int) -> Record:
        """One row; its key is the image and the row's number. Raises RecordError, with its line, for one that does not fit."""
        number = int(self._selected[index])
        row = self._row(number)
        try:
            image, captions, label, label_name = self._fields.read(row, "")
        except RecordError as error:
            raise RecordError(self._where(number), error.reason, error.advice) from error
        extra = row if label_name is None else {**row, "label_name": label_name}
        return Record(f"{image}#{number}", image_of(image, self.root), captions, label, image, extra)

    def _find_classes(self, label: str, built: Built) -> None:
        """All names under the label, in one pass that the cache keeps."""
        names, column = set(), self._header.index(label)
        for row in range(len(self._rows)):
            fields = self._parsed(row)
            if len(fields) == len(self._header):
                names.add(fields[column].strip())
        built.metadata = {"classes": class_names(names, f"{self.path}, column {label!r}")}

    def _row(self, number: int) -> dict[str, str]:
        fields = self._parsed(number)
        width = len(self._header)
        while len(fields) > width and not fields[-1]:  # separators at the end of a line
            fields.pop()
        if len(fields) != width:
            advice = (
                f"quote the field that contains {self._separator!r}" if len(fields) > width
                else f"put {self._separator!r} between its fields"
            )  # fmt: skip
            raise RecordError(self._where(number), f"{len(fields)} fields where the header has {width}", advice)
        return dict(zip(self._header, fields, strict=True))

    def _parsed(self, number: int) -> list[str]:
        offset, size = map(int, self._rows.bounds[number])
        data = self._reader.read(offset, size).removeprefix(MARK).replace(b"\0", b"")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RecordError(self._where(number), "is not UTF-8 text", f"convert it: {self._conversion()}") from error
        return fields_of(text.removesuffix("\r"), self._separator)[0]

    def _conversion(self) -> str:
        return conversion(self.path, "WINDOWS-1252")

    def _where(self, number: int) -> str:
        return f"{self.path}, line {line_number(self.path, int(self._rows.bounds[number, 0]))}"
