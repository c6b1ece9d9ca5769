"""WebDataset: tar shards whose members, grouped by name, are an image and its texts.

    KEY.jpg (png, jpeg, webp, gif, bmp) + KEY.txt and/or KEY.json {"captions": [...], "label": 3} (+ KEY.cls)

A tar is random access once its headers are read, so it is a source like any other: nothing is streamed, and any number of
shards serves any number of ranks. Shards are named by a path, a pattern (``train-*.tar``), or braces (``{000..099}.tar``).
A gzipped tar cannot be read at an offset: it is unpacked once into the cache folder (DIPTYCH_CACHE, else the user's own).
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import itertools
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from diptych import log
from diptych.data import SOURCES, SourceOptions
from diptych.data._fields import CAPTION_KEYS, captions_of
from diptych.data._index import CHUNK, Reader, cache_folder, checked_file
from diptych.errors import SourceError
from diptych.files import replacing
from diptych.types import Record

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
TEXTS = ("json", "txt", "cls")
ABSENT = -1


class Group(NamedTuple):
    """The members of one sample: its key, and offset and size of the image and of each kind of text."""

    key: str
    members: dict[str, tuple[int, int]]


@SOURCES.register("webdataset")
class WebDataset:
    """Tar shards as a source."""

    classes: tuple[str, ...] | None = None

    def __init__(self, spec: str, split: str, options: SourceOptions) -> None:
        if split:
            raise SourceError(f"{spec}: shards have no splits; name the shards of {split!r} instead.")
        paths = [unpacked(path) for path in shards(spec)]
        self.name = Path(spec).name
        self._readers = [Reader(path) for path in paths]
        self._keys: list[str] = []
        rows: list[tuple[int, ...]] = []
        dropped = 0
        for number, path in enumerate(paths):
            for group in groups(path):
                image = next((group.members[kind] for kind in IMAGES if kind in group.members), None)
                if image is None or not ({"json", "txt"} & set(group.members)):
                    dropped += 1
                    continue
                texts = [group.members.get(kind, (ABSENT, 0)) for kind in TEXTS]
                self._keys.append(f"{path.name}/{group.key}")
                rows.append((number, *image, *itertools.chain(*texts)))
        if dropped:
            log.warn(f"{spec}: {dropped} samples lack an image or a text and are left out; {len(rows)} are used.")
        self._table = np.array(rows, dtype=np.int64).reshape(len(rows), 3 + 2 * len(TEXTS))

    @staticmethod
    def matches(spec: str) -> bool:
        """By the ending .tar."""
        return spec.lower().endswith((".tar", ".tar.gz", ".tgz"))

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> WebDataset:
        """Read the headers of all shards. Raises SourceError."""
        return cls(spec, split, options)

    def __len__(self) -> int:
        return len(self._keys)

    def splits(self) -> dict[str, int]:
        """None: shards are split by their names."""
        return {}

    def record(self, index: int) -> Record:
        """One sample, its image still encoded."""
        shard, *places = self._table[index].tolist()
        reader, key = self._readers[shard], self._keys[index]
        image = reader.read(places[0], places[1])
        parts = zip(places[2::2], places[3::2], strict=True)
        texts = {kind: reader.read(*part) for kind, part in zip(TEXTS, parts, strict=True) if part[0] != ABSENT}
        captions, label = _described(texts, key)
        return Record(key, image, captions, label)


def _described(texts: dict[str, bytes], key: str) -> tuple[tuple[str, ...], int | None]:
    """Captions and label of a sample: the JSON's when it has some, else the text file's."""
    captions: tuple[str, ...] = ()
    label: int | None = None
    if "json" in texts:
        try:
            about = json.loads(texts["json"])
        except ValueError as error:
            raise SourceError(f"{key}.json: not valid JSON ({error}).") from error
        found = (
            next((about[name] for name in CAPTION_KEYS if about.get(name)), None) if isinstance(about, dict) else None
        )
        captions = captions_of(found)
        label = about.get("label") if isinstance(about, dict) and isinstance(about.get("label"), int) else None
    if not captions and "txt" in texts:
        captions = (texts["txt"].decode("utf-8", errors="replace").strip(),)
    if "cls" in texts and texts["cls"].strip().isdigit():
        label = int(texts["cls"])
    return captions, label


def shards(spec: str) -> list[Path]:
    """The files that a path, pattern or brace expression names, in order. Raises SourceError when there are none."""
    found: list[Path] = []
    for name in braces(spec):
        if glob.has_magic(name):
            matching = sorted(glob.glob(name))
            if not matching:
                raise SourceError(f"{name}: no file matches this pattern.")
            found += [checked_file(path) for path in matching]
        else:
            found.append(checked_file(name))
    return found


def unpacked(path: Path) -> Path:
    """The tar itself, or for a gzipped one its unpacked copy in the cache, made once for each state of the file."""
    if not path.name.lower().endswith((".tar.gz", ".tgz")):
        return path
    state = path.stat()
    mark = hashlib.blake2b(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode(), digest_size=8).hexdigest()
    copy = cache_folder() / "unpacked" / f"{path.name.partition('.')[0]}-{mark}.tar"
    if copy.exists():
        return copy
    with replacing(copy, "unpacked shard") as beside, gzip.open(path) as source, beside.open("wb") as target:
        try:
            shutil.copyfileobj(source, target, CHUNK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(f"{path}: not a whole gzip file ({error}).") from error
    return copy


def braces(spec: str) -> Iterator[str]:
    """``a{00..02}b{x,y}`` -> a00bx, a00by, a01bx, ...; zeros in front are kept."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", spec)
    if match is None:
        yield spec
        return
    first, last, words = match.groups()
    if words is None:
        width = len(first) if first.startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    else:
        choices = words.split(",")
    for choice in choices:
        yield from braces(spec[: match.start()] + choice + spec[match.end() :])


def groups(path: Path) -> Iterator[Group]:
    """The samples of one tar: members that share a name up to the first dot, in the order they stand."""
    key = ""
    members: dict[str, tuple[int, int]] = {}
    for name, offset, size in _members(path):
        stem, _, ending = name.rpartition("/")[2].partition(".")
        whole = f"{name.rpartition('/')[0]}/{stem}".lstrip("/")
        if whole != key and members:
            yield Group(key, members)
            members = {}
        key = whole
        kind = ending.lower().rpartition(".")[2]
        if kind in IMAGES or kind in TEXTS:
            members[kind] = (offset, size)
    if members:
        yield Group(key, members)


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of the files in a tar. What a truncated one still holds is used, with a warning."""
    whole, end = path.stat().st_size, 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                if not member.isfile():
                    continue
                if member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
                    log.warn(f"{path}: the member {member.name!r} points outside of the archive and is left out.")
                elif member.offset_data + member.size <= whole:
                    yield member.name, member.offset_data, member.size
    except tarfile.ReadError as error:
        if not any(word in str(error) for word in ("empty", "truncated", "unexpected end")):
            raise SourceError(f"{path}: not a readable tar ({error}).") from error
    # A whole tar ends with a block of zeros behind the last member.
    if end + tarfile.BLOCKSIZE > whole:
        log.warn(f"{path}: cut short; what stands before the cut is used.")
