"""JSON Lines: one object per line, one image each, with one or several captions, perhaps a split and a label.

    {"image": "photos/1.jpg", "captions": ["a dog", "a puppy runs"], "split": "train"}

Lines are found by offset and parsed when asked for, so a file of any length costs sixteen bytes a line. Not JSON arrays.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data import SOURCES, SourceOptions
from diptych.data._fields import CAPTION_KEYS, IMAGE_KEYS, captions_of, chosen_split, image_path
from diptych.data._index import Reader, checked_file, line_bounds
from diptych.errors import SourceError
from diptych.types import Record


@SOURCES.register("jsonl")
class JsonLines:
    """A JSON Lines file as a source."""

    classes: tuple[str, ...] | None = None

    def __init__(self, spec: str, split: str, options: SourceOptions) -> None:
        self.path = checked_file(spec)
        self.name = self.path.name
        self.root = Path(options.image_root) if options.image_root else self.path.parent
        self._reader = Reader(self.path)
        self._starts, self._sizes = line_bounds(self.path)
        if not len(self._starts):
            raise SourceError(f"{self.path}: holds no line.")
        self._first = self._line(0)
        self._image_key = self._key(IMAGE_KEYS, "image")
        self._caption_key = self._key(CAPTION_KEYS, "captions")
        of_line = self._split_of_lines()
        self._splits = {name: int((of_line == name).sum()) for name in sorted(set(of_line.tolist())) if name}
        self._kept = (
            np.arange(len(self._starts)) if not split else chosen_split(of_line, split, self._splits, str(self.path))
        )

    @staticmethod
    def matches(spec: str) -> bool:
        """By the ending .jsonl or .ndjson."""
        return spec.lower().endswith((".jsonl", ".ndjson"))

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> JsonLines:
        """Open a file. Raises SourceError."""
        return cls(spec, split, options)

    def _key(self, known: tuple[str, ...], what: str) -> str:
        for key in known:
            if key in self._first:
                return key
        raise SourceError(
            f"{self.path}, line 1: no key for {what}; expected one of {', '.join(known)}; seen: {', '.join(self._first)}."
        )

    def _line(self, line: int) -> Mapping[str, Any]:
        text = self._reader.read(int(self._starts[line]), int(self._sizes[line]))
        try:
            value = json.loads(text)
        except ValueError as error:
            raise SourceError(f"{self.path}, line {self._number(line)}: not valid JSON ({error}).") from error
        if not isinstance(value, dict):
            raise SourceError(
                f"{self.path}, line {self._number(line)}: expected an object {{...}}, got {type(value).__name__}."
            )
        return value

    def _number(self, line: int) -> int:
        """The line's number in the file, counted from 1, blank lines included."""
        with self.path.open("rb") as file:
            return file.read(int(self._starts[line])).count(b"\n") + 1

    def _split_of_lines(self) -> np.ndarray:
        names = []
        for line in range(len(self._starts)):
            text = self._reader.read(int(self._starts[line]), int(self._sizes[line]))
            # Most lines of most files have no split: looking for the word is far cheaper than parsing.
            names.append(str(self._line(line).get("split") or "") if b'"split"' in text else "")
        return np.array(names)

    def __len__(self) -> int:
        return len(self._kept)

    def splits(self) -> dict[str, int]:
        """Sizes of the splits that lines name."""
        return self._splits

    def record(self, index: int) -> Record:
        """Raises SourceError, with the line's number, for a line that is no such object."""
        line = int(self._kept[index])
        row = self._line(line)
        if not isinstance(row.get(self._image_key), str):
            raise SourceError(f"{self.path}, line {self._number(line)}: {self._image_key!r} is missing or no text.")
        given = row[self._image_key]
        label = row.get("label")
        return Record(
            key=f"{given}#{line}",
            image=image_path(given, self.root),
            captions=captions_of(row.get(self._caption_key)),
            label=label if isinstance(label, int) else None,
            group=given,
        )
