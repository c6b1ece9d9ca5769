"""Flickr30k's token file, ``results_20130124.token``: ``NAME.jpg#K<tab>caption``, no header, five lines a photo.

Photos lie beside the file, in ``flickr30k-images`` or another folder of ``_roots``, or under --image-root.
Quotes mean nothing here, which is where spreadsheets' readers lose lines.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from diptych.data._base import SOURCES, LeftOut, SourceOptions
from diptych.data._index import Reader, checked_file
from diptych.data._line_index import Built, line_bounds, line_number, not_blank, rows_of
from diptych.data._roots import root_of
from diptych.data._sample import sample_rows
from diptych.errors import RecordError, SourceError
from diptych.types import Record


@SOURCES.register("flickr_token")
class FlickrToken:
    """A token file as a source: one record per caption, photos of one name share a group."""

    priority: ClassVar[int] = 20
    example: ClassVar[str] = "results.token"
    classes: tuple[str, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()

    def __init__(self, spec: str, split: str, options: SourceOptions) -> None:
        if split:
            raise SourceError(f"{spec}: a token file has no splits; make them with: diptych data split.")
        self.path = checked_file(spec)
        self.name = self.path.name
        self._rows = rows_of(self.path, "lines", _build)
        self._reader = Reader(self.path)
        names = (self._line(row).partition("\t")[0].rpartition("#")[0] for row in sample_rows(len(self._rows))[::4])
        self.root = root_of(self.path, options.image_root, names)

    @classmethod
    def matches(cls, spec: str) -> bool:
        """By the ending .token; a .txt (Flickr8k.token.txt) by the form of its first line."""
        return spec.lower().endswith(".token") or (spec.lower().endswith(".txt") and _begins_as_one(Path(spec)))

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> FlickrToken:
        """Open a file. Raises SourceError."""
        return cls(spec, split, options)

    def __len__(self) -> int:
        return len(self._rows)

    def splits(self) -> dict[str, int]:
        """None."""
        return {}

    def record(self, index: int) -> Record:
        """One caption. Raises RecordError for a line of another form."""
        line = self._line(index)
        name, tab, caption = line.partition("\t")
        image, mark, _ = name.rpartition("#")
        if not tab or not mark:
            where = f"{self.path}, line {line_number(self.path, int(self._rows.bounds[index, 0]))}"
            raise RecordError(where, f"expected NAME.jpg#K, a tab and a caption; got {line[:60]!r}")
        return Record(f"{name}", self.root / image, (caption.strip(),), group=image)

    def _line(self, index: int) -> str:
        offset, size = map(int, self._rows.bounds[index])
        return self._reader.read(offset, size).decode("utf-8", errors="replace").rstrip("\r")


def _begins_as_one(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return re.match(rb"[^\t]*[^\t#]#\d\t", file.readline(1 << 12)) is not None


def _build(path: Path, built: Built) -> None:
    for bounds, _, _ in line_bounds(path):
        built.append(bounds[not_blank(bounds)])
