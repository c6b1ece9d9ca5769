"""PaddleMIX's LAION shards: a file list, one shard per line; a shard is text, one pair per line, tab separated.

Column 2 is JSON with ``caption_en`` (else ``blip_caption_en``, or the key of --csv-caption-key), column 5 the image in base64;
others are ignored. A shard may be gzipped: then it is unpacked once into the cache. Lines are UTF-8, or else GB18030. An odd line
is a bad sample when its turn comes.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diptych import log
from diptych.data._base import SOURCES, LeftOut, SourceOptions
from diptych.data._index import Reader, checked_file, unpacked
from diptych.data._line_index import Built, line_bounds, not_blank, rows_of
from diptych.errors import RecordError, SourceError
from diptych.types import Record

TEXT, IMAGE = 2, 5
INSPECTED = 8  # lines
CAPTIONS = ("caption_en", "blip_caption_en")


@SOURCES.register("laion")
class Laion:
    """A file list, or one shard, as a source."""

    priority: ClassVar[int] = 30
    example: ClassVar[str] = "laion.filelist or part-00000"
    uses: ClassVar[frozenset[str]] = frozenset(
        (
            "csv_caption_key",
            "image_root",
        )
    )
    classes: tuple[str, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()

    def __init__(self, spec: str, split: str, options: SourceOptions) -> None:
        if split:
            raise SourceError(f"{spec}: shards have no splits; name the list of {split!r} instead.")
        listed = checked_file(spec)
        root = Path(options.image_root) if options.image_root else listed.parent
        self.name = listed.name
        paths = [unpacked(checked_file(str(path))) for path in _shards(listed, root)]
        self._names = [path.name for path in paths]
        self._rows = [rows_of(path, "laion", _build) for path in paths]
        self._readers = [Reader(path) for path in paths]
        self._ends = np.cumsum([len(rows) for rows in self._rows])
        self._caption_keys: tuple[str, ...] = CAPTIONS
        if asked := options.csv_caption_key:
            self._choose_caption_key(spec, asked)

    @classmethod
    def matches(cls, spec: str) -> bool:
        """By "laion" in the name of a list, or a shard's own: part-00000."""
        name = Path(spec).name.lower()
        return os.path.isfile(spec) and (
            name.startswith("part-") or ("laion" in name and not name.endswith((".csv", ".tar")))
        )

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> Laion:
        """Open all shards. Raises SourceError."""
        return cls(spec, split, options)

    def _choose_caption_key(self, spec: str, asked: str) -> None:
        """Take the caption under another key, if a few lines have it."""
        self._caption_keys = (asked,)
        for index in range(min(INSPECTED, len(self))):
            with contextlib.suppress(RecordError):
                if asked in self.record(index).extra:
                    return
        self._caption_keys = CAPTIONS
        log.info(f"{spec}: --csv-caption-key {asked} is no key of its lines; {' or '.join(CAPTIONS)} is taken")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def splits(self) -> dict[str, int]:
        """None: shards are split by their lists."""
        return {}

    def record(self, index: int) -> Record:
        """One line. Raises RecordError for one that has too few columns, or no image."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        offset, size = map(int, self._rows[shard].bounds[row])
        key = f"{self._names[shard]}#{row}"
        columns = self._readers[shard].read(offset, size).rstrip(b"\r").split(b"\t")
        if len(columns) <= IMAGE:
            raise RecordError(key, f"{len(columns)} columns where at least {IMAGE + 1} are expected")
        try:
            image = base64.b64decode(columns[IMAGE], validate=True)
        except binascii.Error as error:
            raise RecordError(key, f"its image is not base64 ({error})") from error
        metadata = _metadata(columns[TEXT], key)
        return Record(key, image, _caption(metadata, key, self._caption_keys), extra=metadata)


def _metadata(column: bytes, key: str) -> dict[str, Any]:
    """The object in a line's third column. Raises RecordError for what is none."""
    try:
        text = column.decode("utf-8")
    except UnicodeDecodeError:
        try:
            text = column.decode("gb18030")
        except UnicodeDecodeError as error:
            raise RecordError(key, f"its third column is neither UTF-8 nor GB18030 (byte {error.start})") from error
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(key, f"its third column is not JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise RecordError(key, f"its third column is {type(metadata).__name__} where an object {{...}} is expected")
    return metadata


def _caption(metadata: Mapping[str, Any], key: str, names: Sequence[str]) -> tuple[str, ...]:
    """The caption under the first of the names that has one. Raises RecordError for a value that is no caption."""
    name = next((name for name in names if metadata.get(name)), "")
    value = metadata.get(name) or []
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise RecordError(key, f"its {name!r} is {type(value).__name__}, not a text or a list of texts")
    return tuple(texts)


def _shards(listed: Path, root: Path) -> list[Path]:
    """The shards that a list names; a shard itself is a list of one."""
    with listed.open("rb") as file:
        first = file.readline(1 << 16)
    if b"\t" in first or first.startswith(b"\x1f\x8b"):
        return [listed]
    try:
        names = [line.strip() for line in listed.read_text(encoding="utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise SourceError(f"{listed}: not UTF-8 text (byte {error.start}); a list of shards is expected.") from error
    paths = [Path(name) if Path(name).is_absolute() else root / name for name in names if name]
    if not paths:
        raise SourceError(f"{listed}: lists no shard.")
    return paths


def _build(path: Path, built: Built) -> None:
    for bounds, _, _ in line_bounds(path):
        built.append(bounds[not_blank(bounds)])
