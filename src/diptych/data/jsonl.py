"""JSON Lines: one object per line, one image each, with one or several captions, perhaps a split and a label.

    {"image": "photos/1.jpg", "captions": ["a dog", "a puppy runs"], "split": "train"}

Lines are read through an index that is built once and mapped (``_line_index``) and parsed on demand, so a file of any length
costs no memory. DeCLIP's YFCC list is such a file ("filename", "caption"); ImageNet's ``val_official.json`` another ("label").
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diptych.data._base import SOURCES, LeftOut, Source, SourceOptions
from diptych.data._columns import image_of, split_name
from diptych.data._fields import decide, split_column
from diptych.data._index import Reader, checked_file
from diptych.data._label_values import class_names, is_missing
from diptych.data._line_index import Built, check_encoding, line_bounds, line_number, not_blank, rows_of, selected_rows
from diptych.data._roots import root_of
from diptych.data._sample import sampled
from diptych.errors import RecordError, SourceError
from diptych.types import Record

# A split as a line spells it. Inside of a caption the quotes would be escaped, so it cannot match there.
SPLIT = re.compile(rb'"[Ss](?:plit|PLIT)"\s*:\s*("(?:[^"\\]|\\.)*")')
MARK = b"\xef\xbb\xbf"  # what some editors put in front of UTF-8
NAMES = (b'"split"', b'"Split"', b'"SPLIT"')


@SOURCES.register("jsonl")
class JsonLines:
    """A JSON Lines file as a source."""

    priority: ClassVar[int] = 20
    example: ClassVar[str] = "pairs.jsonl or .ndjson"
    classes: tuple[str, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()

    def __init__(self, spec: str, split: str, options: SourceOptions, shown: Path | None = None) -> None:
        """``shown``: the file that errors name, whose items these lines are."""
        self.path = checked_file(spec)
        self.shown = shown
        self.name = (shown or self.path).name
        self._reader = Reader(self.path)
        self._rows = rows_of(self.path, "jsonl 2", _build)
        if not len(self._rows):
            raise SourceError(f"{shown or self.path}: holds no line.")
        sample = sampled(len(self._rows), self._line)
        self._fields = decide(sample, str(shown or self.path), options)
        self.root = root_of(shown or self.path, options.image_root, self._fields.paths(sample))
        self._selected = selected_rows(self._rows, split, str(shown or self.path))
        if self._fields.named:
            label = self._fields.label
            stored = rows_of(self.path, f"jsonl classes {label}", lambda _, built: self._find_classes(label, built))
            self._fields = self._fields.with_classes(stored.metadata["classes"])
        self.classes = self._fields.classes

    @classmethod
    def matches(cls, spec: str) -> bool:
        """By the ending .jsonl or .ndjson."""
        return spec.lower().endswith((".jsonl", ".ndjson"))

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> Source:
        """Open a file; one that is no lines, but one text over several of them, as JSON. Raises SourceError."""
        path = checked_file(spec)
        with path.open("rb") as file:
            start = file.read(1 << 16)
        check_encoding(path, start)
        first = start.lstrip(MARK + b" \t\r\n").partition(b"\n")[0].strip()
        if first == b"{" or first.startswith(b"["):
            return SOURCES.get("json").open(spec, split, options)
        return cls(spec, split, options)

    def _find_classes(self, label: str, built: Built) -> None:
        """All names under the label, in one pass that the cache keeps."""
        names = set()
        for row in range(len(self._rows)):
            with contextlib.suppress(RecordError):
                if not is_missing(value := self._line(row).get(label)):
                    names.add(str(value))
        built.metadata = {"classes": class_names(names, f"{self.shown or self.path}, column {label!r}")}

    def _line(self, row: int) -> Mapping[str, Any]:
        offset, size = map(int, self._rows.bounds[row])
        data = self._reader.read(offset, size)
        try:
            value = json.loads(data.removeprefix(MARK).decode("utf-8"))  # of bytes, json would guess the encoding
        except (ValueError, RecursionError) as error:
            raise RecordError(self._where(row), f"not valid JSON ({str(error).splitlines()[0][:160]})") from error
        if not isinstance(value, dict):
            raise RecordError(self._where(row), f"expected an object {{...}}, got {type(value).__name__}")
        return value

    def _where(self, row: int) -> str:
        """The line, or the item of an array; counting lines costs time, so it is done for errors only."""
        if self.shown is not None:
            return f"{self.shown}, item {row}"
        return f"{self.path}, line {line_number(self.path, int(self._rows.bounds[row, 0]))}"

    def __len__(self) -> int:
        return len(self._selected)

    def splits(self) -> dict[str, int]:
        """Sizes of the splits that lines name."""
        return self._rows.splits()

    def record(self, index: int) -> Record:
        """Raises RecordError, with the line's number, for a line that is no such object."""
        number = int(self._selected[index])
        row = self._line(number)
        try:
            image, captions, label, label_name = self._fields.read(row, "")
        except RecordError as error:
            raise RecordError(self._where(number), error.reason, error.advice) from error
        if not isinstance(image, str):
            raise RecordError(self._where(number), f"its image is {type(image).__name__}, expected a path")
        extra = row if label_name is None else {**row, "label_name": label_name}
        return Record(f"{image}#{number}", image_of(image, self.root), captions, label, image, extra)


def _build(path: Path, built: Built) -> None:
    known: dict[bytes, int] = {}  # the text of a split, and its number
    for bounds, text, base in line_bounds(path):
        full = not_blank(bounds)
        if not any(name in text for name in NAMES):
            built.append(bounds[full])
            continue
        codes = np.zeros(len(bounds), dtype=np.int64)
        matches = list(SPLIT.finditer(text))
        starts = bounds[:, 0] - base
        lines = np.searchsorted(starts, [match.start() for match in matches], side="right") - 1
        several = np.bincount(lines, minlength=len(bounds)) > 1
        for line, match in zip(lines.tolist(), matches, strict=True):
            first, spelled = int(starts[line]), match.group(1)
            # Only the object's own key counts. That it is, is sure where it is the only one and no object begins before it.
            if several[line] or text.count(b"{", first, match.start()) > 1:
                codes[line] = built.code(_own_split(text[first : first + int(bounds[line, 1])]))
                continue
            if spelled not in known:
                try:
                    known[spelled] = built.code(split_name(json.loads(spelled)))
                except ValueError:  # reading the line itself raises
                    known[spelled] = 0
            codes[line] = known[spelled]
        built.append(bounds[full], codes[full])


def _own_split(line: bytes) -> str:
    """The split that a line's object itself names; "" for none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return split_name(row.get(split_column(list(row)))) if isinstance(row, dict) else ""
