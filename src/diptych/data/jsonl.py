"""JSON Lines: one object per line, one image each, with one or several captions, perhaps a split and a label.

    {"image": "photos/1.jpg", "captions": ["a dog", "a puppy runs"], "split": "train"}

Lines are read through an index that is built once and mapped (``_line_index``) and parsed on demand, so a file of any length
costs no memory. DeCLIP's YFCC list is such a file ("filename", "caption"); ImageNet's ``val_official.json`` another ("label").
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diptych.data._base import SOURCES, LeftOut, SourceOptions
from diptych.data._columns import CAPTION_KEYS, IMAGE_KEYS, captions_of, image_of, label_of, parsed
from diptych.data._index import Reader, checked_file
from diptych.data._line_index import Built, known_keys, line_bounds, line_number, not_blank, rows_of, selected_rows
from diptych.errors import SourceError
from diptych.types import Record

# A split as a line spells it. Inside of a caption the quotes would be escaped, so it cannot match there.
SPLIT = re.compile(rb'"split"\s*:\s*("(?:[^"\\]|\\.)*")')


@SOURCES.register("jsonl")
class JsonLines:
    """A JSON Lines file as a source."""

    priority: ClassVar[int] = 20
    example: ClassVar[str] = "pairs.jsonl or .ndjson"
    classes: tuple[str, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()

    def __init__(self, spec: str, split: str, options: SourceOptions, root: Path | None = None) -> None:
        self.path = checked_file(spec)
        self.name = self.path.name
        self.root = Path(options.image_root) if options.image_root else root or self.path.parent
        self._reader = Reader(self.path)
        self._rows = rows_of(self.path, "jsonl", _build)
        if not len(self._rows):
            raise SourceError(f"{self.path}: holds no line.")
        first = self._line(0)
        self._image_key = options.csv_img_key or self._key(first, IMAGE_KEYS, "image")
        self._caption_key = options.csv_caption_key or known_keys(tuple(first), CAPTION_KEYS)
        if self._caption_key is None and "label" not in first:
            self._key(first, CAPTION_KEYS, "captions")
        self._selected = selected_rows(self._rows, split, str(self.path))

    @classmethod
    def matches(cls, spec: str) -> bool:
        """By the ending .jsonl or .ndjson."""
        return spec.lower().endswith((".jsonl", ".ndjson"))

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> JsonLines:
        """Open a file. Raises SourceError."""
        return cls(spec, split, options)

    def _key(self, first: Mapping[str, Any], known: tuple[str, ...], what: str) -> str:
        key = known_keys(tuple(first), known)
        if key is None:
            raise SourceError(
                f"{self.path}, line 1: no key for {what}; expected one of {', '.join(known)}; seen: {', '.join(first)}."
            )
        return key

    def _line(self, row: int) -> Mapping[str, Any]:
        offset, size = map(int, self._rows.bounds[row])
        data = self._reader.read(offset, size)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = parsed(data, self._where(row))  # once more, for its message: counting lines costs time
        if not isinstance(value, dict):
            raise SourceError(f"{self._where(row)}: expected an object {{...}}, got {type(value).__name__}.")
        return value

    def _where(self, row: int) -> str:
        return f"{self.path}, line {line_number(self.path, int(self._rows.bounds[row, 0]))}"

    def __len__(self) -> int:
        return len(self._selected)

    def splits(self) -> dict[str, int]:
        """Sizes of the splits that lines name."""
        return self._rows.splits()

    def record(self, index: int) -> Record:
        """Raises SourceError, with the line's number, for a line that is no such object."""
        row_number = int(self._selected[index])
        row = self._line(row_number)
        if not isinstance(row.get(self._image_key), str):
            raise SourceError(f"{self._where(row_number)}: {self._image_key!r} is missing or no text.")
        given = row[self._image_key]
        return Record(
            key=f"{given}#{row_number}",
            image=image_of(given, self.root),
            captions=captions_of(row.get(self._caption_key) if self._caption_key else None),
            label=label_of(row.get("label")),
            group=given,
            extra=row,
        )


def _build(path: Path, built: Built) -> None:
    for bounds, text, base in line_bounds(path):
        full = not_blank(bounds)
        if b'"split"' not in text:
            built.append(bounds[full])
            continue
        codes = np.zeros(len(bounds), dtype=np.int64)
        starts = bounds[:, 0] - base
        # Backwards, so that the first of a line counts.
        for match in reversed(list(SPLIT.finditer(text))):
            line = int(np.searchsorted(starts, match.start(), side="right")) - 1
            try:
                codes[line] = built.code(str(json.loads(match.group(1))))
            except ValueError:  # reading the line itself raises
                codes[line] = 0
        built.append(bounds[full], codes[full])
