"""Flickr30k's token file, ``results_20130124.token``: ``NAME.jpg#K<tab>caption``, no header, five lines a photo.

Photos lie in ``flickr30k-images`` beside the file, or beside it, or under --image-root. Quotes mean nothing here, which is
where spreadsheets' readers lose lines.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from diptych.data._base import SOURCES, LeftOut, SourceOptions
from diptych.data._index import Reader, checked_file
from diptych.data._line_index import Built, line_bounds, line_number, not_blank, rows_of
from diptych.errors import SourceError
from diptych.types import Record

FOLDERS = ("flickr30k-images", "flickr30k_images", "images", "")


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
        base = self.path.parent
        folder = next((base / name for name in FOLDERS if (base / name).is_dir()), base)
        self.root = Path(options.image_root) if options.image_root else folder
        self._rows = rows_of(self.path, "lines", _build)
        self._reader = Reader(self.path)

    @classmethod
    def matches(cls, spec: str) -> bool:
        """By the ending .token."""
        return spec.lower().endswith(".token")

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
        """One caption. Raises SourceError for a line of another form."""
        offset, size = map(int, self._rows.bounds[index])
        line = self._reader.read(offset, size).decode("utf-8", errors="replace").rstrip("\r")
        name, tab, caption = line.partition("\t")
        image, mark, _ = name.rpartition("#")
        if not tab or not mark:
            where = f"{self.path}, line {line_number(self.path, offset)}"
            raise SourceError(f"{where}: expected NAME.jpg#K, a tab and a caption; got {line[:60]!r}.")
        return Record(f"{name}", self.root / image, (caption.strip(),), group=image)


def _build(path: Path, built: Built) -> None:
    for bounds, _, _ in line_bounds(path):
        built.append(bounds[not_blank(bounds)])
