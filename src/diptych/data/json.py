"""JSON files: one text that holds all images, in the layouts of COCO, Karpathy, LLaVA, fine-tuning lists and mappings.

    [{"image": "val2014/1.jpg", "caption": "a dog"}, ...]        {"images/1.jpg": ["a dog", "a puppy runs"], ...}
    {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}

A text has to be read from its beginning, so it is turned into JSON Lines once, in the cache, and read as those ever after; errors
name the file itself and the item. What each layout means is in ``_json_layouts``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar

from diptych.data._base import SOURCES, Source, SourceOptions
from diptych.data._fields import say
from diptych.data._index import checked_file
from diptych.data._json_layouts import items_of
from diptych.data._line_index import check_encoding
from diptych.errors import SourceError
from diptych.files import cache_folder, replacing
from diptych.registry import Registry

VERSION = 3


@SOURCES.register("json")
class JsonArray:
    """The way in; what comes out is a source of JSON Lines."""

    priority: ClassVar[int] = 20
    example: ClassVar[str] = "list.json"

    @classmethod
    def matches(cls, spec: str) -> bool:
        """By the ending .json."""
        return spec.lower().endswith(".json")

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> Source:
        """Turn into lines, once, and open those. A file that has lines under this name is opened as it is. Raises SourceError."""
        path = checked_file(spec)
        with path.open("rb") as file:
            check_encoding(path, file.read(1 << 12))
        kinds: Registry[Any] = SOURCES  # JSON Lines by its registered name: entries do not import each other
        lines, said = _as_lines(path)
        if said:
            say(f"{path}: {said}")
        shown = None if lines == path else path
        source: Source = kinds.get("jsonl")(str(lines), split, options, shown=shown)
        source.name = path.name
        return source


def _as_lines(path: Path) -> tuple[Path, str]:
    """A JSON Lines file with the same records, the file itself where it has lines, and what is said of its layout."""
    if _has_lines(path):
        return path, ""  # val_official.json, yfcc15m_clean_open_data.json
    state = path.stat()
    mark = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {VERSION}"
    digest = hashlib.blake2b(mark.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    lines = cache_folder() / "lines" / f"{path.stem[:60]}-{digest}.jsonl"
    note = lines.with_suffix(".said")
    if not lines.is_file():
        with replacing(lines, "list as lines") as beside, beside.open("w", encoding="utf-8") as target:
            items, said = items_of(_text(path), path)
            for item in items:
                target.write(json.dumps(item).ljust(2) + "\n")  # a line of one byte counts as blank
            if not target.tell():
                raise SourceError(f"{path}: an empty list, it holds no record.")
        if said:
            with replacing(note, "note on a list") as beside:
                beside.write_text(said, encoding="utf-8")
    return lines, note.read_text(encoding="utf-8") if note.is_file() else ""


def _has_lines(path: Path) -> bool:
    """Whether the first line is a whole object and not the only one."""
    with path.open("rb") as file:
        start = file.read(1 << 18).lstrip(b"\xef\xbb\xbf \t\r\n")
    first, _, rest = start.partition(b"\n")
    if not first.startswith(b"{") or not rest.strip():
        # A single line may be a single record, or a mapping: ``items_of`` decides.
        return False
    return first.rstrip().endswith(b"}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
