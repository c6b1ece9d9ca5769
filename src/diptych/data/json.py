"""JSON arrays: one file that is a list of images, as three systems write it.

    [{"image": "flickr8k-images\\\\1.jpg", "caption": ["a dog", ...]}, ...]        fine-tuning lists (en_train.json)
    [{"image": "val2014/1.jpg", "caption": "a dog", "image_id": "coco_1"}, ...]   PaddleMIX, LAVIS (coco_karpathy_train.json)
    {"images": [{"filepath": "val2014", "filename": "1.jpg", "split": "train", "sentences": [{"raw": "a dog"}]}]}
                                                                                  Karpathy's own (dataset_coco.json)

An array has to be read from its beginning, so it is turned into JSON Lines once, in the cache, and read as those ever after.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from diptych.data._base import SOURCES, Source, SourceOptions
from diptych.data._index import checked_file
from diptych.errors import SourceError
from diptych.files import cache_folder, replacing
from diptych.registry import Registry

VERSION = 2


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
        lines: Registry[Any] = SOURCES  # JSON Lines by its registered name: entries do not import each other
        source: Source = lines.get("jsonl")(_as_lines(path), split, options, root=path.parent)
        source.name = path.name
        return source


def _as_lines(path: Path) -> str:
    """The path of a JSON Lines file with the same records."""
    with path.open("rb") as file:
        first = file.read(1 << 16).lstrip(b"\xef\xbb\xbf \t\r\n")
    if first.startswith(b"{") and b'"images"' not in first.partition(b"[")[0]:
        return str(path)  # JSON Lines under another name (val_official.json, yfcc15m_clean_open_data.json)
    state = path.stat()
    mark = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {VERSION}"
    digest = hashlib.blake2b(mark.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    lines = cache_folder() / "lines" / f"{path.stem[:60]}-{digest}.jsonl"
    if not lines.is_file():
        with replacing(lines, "list as lines") as beside, beside.open("w", encoding="utf-8") as target:
            count = 0
            for count, item in enumerate(_items(path), start=1):
                target.write(json.dumps(_plain(item, count - 1, path)) + "\n")
            if not count:
                raise SourceError(f"{path}: an empty list, it holds no record.")
    return str(lines)


def _items(path: Path) -> Iterator[Any]:
    """The array's items, one at a time: the text is in memory, the objects are not."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    decoder = json.JSONDecoder()
    position = text.find("[") if text.lstrip().startswith("[") else _images(text, path)
    position += 1
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        if position < len(text) and text[position] == "]":
            return
        try:
            item, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            line = text.count("\n", 0, position) + 1
            raise SourceError(f"{path}, line {line}: not valid JSON ({error}).") from error
        yield item


def _images(text: str, path: Path) -> int:
    """Where the array under "images" begins."""
    match = re.search(r'"images"\s*:\s*\[', text)
    if match is None:
        raise SourceError(f'{path}: neither an array of images nor an object with "images": [...].')
    return match.end() - 1


def _plain(item: Any, number: int, path: Path) -> dict[str, Any]:
    """One record with the keys of JSON Lines."""
    if not isinstance(item, dict):
        raise SourceError(f"{path}, item {number}: expected an object {{...}}, got {type(item).__name__}.")
    if "sentences" not in item:
        return item
    # Karpathy's: a folder and a name, and sentences with their tokens.
    folder = f"{item['filepath']}/" if item.get("filepath") else ""
    sentences = item["sentences"] if isinstance(item["sentences"], list) else []
    captions = [text["raw"] for text in sentences if isinstance(text, dict) and isinstance(text.get("raw"), str)]
    row = {"image": f"{folder}{item.get('filename') or ''}", "captions": captions}
    # His "restval" is training data, as everybody who uses his split does.
    named = item.get("split")
    split = {"restval": "train"}.get(named, named) if isinstance(named, str) else ""
    return row | ({"split": split} if split else {})
