"""WebDataset: tar shards whose members, grouped by name, are an image and its texts.

    KEY.jpg (png, jpeg, webp, gif, bmp) + KEY.txt and/or KEY.json {"captions": [...], "label": 3} (+ KEY.cls)

A tar is random access once its headers are read, so it is a source like any other: nothing is streamed, and any number of
shards serves any number of ranks. Shards are named by a path, a pattern (``train-*.tar``), or braces (``{000..099}.tar``).
A gzipped tar cannot be read at an offset: it is unpacked once into the cache folder (DIPTYCH_CACHE, else the user's own).
Remote shards (s3://, http://, ...) are read by ranges; what cannot be (a store without ranges, ``pipe:COMMAND``) is copied into
the cache once, since a stream cannot be read at an offset.
"""

from __future__ import annotations

import concurrent.futures
import glob
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from diptych import log
from diptych.data._base import SOURCES, LeftOut, SourceOptions
from diptych.data._columns import CAPTION_KEYS, OWN_GROUP, OWN_KEY, captions_of, label_of, parsed
from diptych.data._index import Reader, checked_file, unpacked
from diptych.data._remote import has_ranges, is_remote, listed, piped
from diptych.data._tar import Members, members_of
from diptych.errors import SourceError
from diptych.files import cache_folder
from diptych.types import Record

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
TEXTS = ("json", "txt", "cls")
ENDINGS = frozenset((*IMAGES, *TEXTS))
ABSENT = -1
PIPE = "pipe:"
MOST_SHARDS = 1_000_000  # more is a slip of the pen, and would fill the memory with names


class Group(NamedTuple):
    """The members of one sample: its key, and offset and size of the image and of each type of text."""

    key: str
    members: dict[str, tuple[int, int]]


@SOURCES.register("webdataset")
class WebDataset:
    """Tar shards as a source."""

    priority: ClassVar[int] = 15
    example: ClassVar[str] = "shards-{000..099}.tar"
    classes: tuple[str, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()

    def __init__(self, spec: str, split: str, options: SourceOptions) -> None:
        if split:
            raise SourceError(f"{spec}: shards have no splits; name the shards of {split!r} instead.")
        paths = shards(spec)
        self.name = Path(spec).name
        self._readers = [Reader(path) for path in paths]
        self._keys: list[str] = []
        rows: list[tuple[int, ...]] = []
        dropped = twice = 0
        names = [str(path).rpartition("/")[2] for path in paths]
        if len(set(names)) < len(names):  # a/000.tar and b/000.tar hold other images
            names = [f"{number}/{name}" for number, name in enumerate(names)]
        for number, (path, members) in enumerate(zip(paths, _indexed(paths), strict=True)):
            _warn_of(str(path), members)
            name, met = names[number], set[str]()
            for group in groups(members):
                image = next((group.members[ending] for ending in IMAGES if ending in group.members), None)
                if image is None or not ({"json", "txt", "cls"} & set(group.members)):
                    dropped += 1
                    continue
                texts = [group.members.get(ending, (ABSENT, 0)) for ending in TEXTS]
                self._keys.append(f"{name}/{group.key}")
                twice += group.key in met
                met.add(group.key)
                rows.append((number, *image, *itertools.chain(*texts)))
        if twice:
            log.warn(f"{spec}: {twice} keys come twice within a shard; both are used.")
            self._keys = [f"{key}#{number}" for number, key in enumerate(self._keys)]
        if dropped:
            log.warn(f"{spec}: {dropped} samples lack an image or a text and are left out; {len(rows)} are used.")
        self._table = np.array(rows, dtype=np.int64).reshape(len(rows), 3 + 2 * len(TEXTS))

    @classmethod
    def matches(cls, spec: str) -> bool:
        """By the ending .tar, or pipe: in front."""
        return spec.startswith(PIPE) or spec.lower().endswith((".tar", ".tar.gz", ".tgz"))

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
        shard, *spans = self._table[index].tolist()
        reader, key = self._readers[shard], self._keys[index]
        image = reader.read(spans[0], spans[1])
        parts = zip(spans[2::2], spans[3::2], strict=True)
        texts = {ending: reader.read(*part) for ending, part in zip(TEXTS, parts, strict=True) if part[0] != ABSENT}
        captions, label, metadata = _described(texts, key)
        # Shards of ours carry the key and the image's name that their source gave.
        named, group = metadata.get(OWN_KEY), metadata.get(OWN_GROUP)
        key = named if isinstance(named, str) else key
        return Record(key, image, captions, label, group if isinstance(group, str) else None, metadata)


def _described(texts: dict[str, bytes], key: str) -> tuple[tuple[str, ...], int | None, dict[str, Any]]:
    """Captions and label of a sample, the JSON's when it has some, else the text file's; and the rest of the JSON."""
    captions: tuple[str, ...] = ()
    label: int | None = None
    metadata: Any = {}
    if "json" in texts:
        metadata = parsed(texts["json"], f"{key}.json")
        captions_value = (
            next((metadata[name] for name in CAPTION_KEYS if metadata.get(name)), None)
            if isinstance(metadata, dict)
            else None
        )
        captions = captions_of(captions_value)
        label = label_of(metadata.get("label")) if isinstance(metadata, dict) else None
    if not captions and "txt" in texts:
        captions = (texts["txt"].decode("utf-8", errors="replace").strip(),)
    if "cls" in texts and (number := label_of(texts["cls"])) is not None:
        label = number
    return captions, label, metadata if isinstance(metadata, dict) else {}


def _indexed(paths: Sequence[Path | str]) -> list[Members]:
    """The members of all shards, several at a time: reading headers is mostly waiting for the disk or the network."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, len(paths) or 1)) as pool:
        return list(pool.map(members_of, map(str, paths)))


def _warn_of(path: str, members: Members) -> None:
    if not members.whole:
        log.warn(f"{path}: truncated; the whole members before its end are used.")
    if members.outside:
        log.warn(f"{path}: {members.outside} members point outside of the archive and are left out.")


def shards(spec: str) -> list[Path | str]:
    """The files that a path, pattern or brace expression names, in order. Raises SourceError when there are none.

    Gzipped ones are unpacked into the cache; remote ones stay where they are, unless they are gzipped.
    """
    files: list[Path | str] = []
    for name in braces(spec):
        magic = glob.has_magic(name) and not name.startswith(PIPE)
        matching = (listed(name) if is_remote(name) else sorted(glob.glob(name))) if magic else [name]
        if not matching:
            raise SourceError(f"{name}: no file matches this pattern.")
        files += [_shard(path) for path in matching]
    return files


def _shard(name: str) -> Path | str:
    if name.startswith(PIPE):
        return unpacked(piped(name.removeprefix(PIPE), cache_folder() / "remote"))
    if is_remote(name) and not name.lower().endswith((".gz", ".tgz")) and has_ranges(name):
        return name
    return unpacked(checked_file(name))


def braces(spec: str) -> Iterator[str]:
    """``a{00..02}b{x,y}`` -> a00bx, a00by, a01bx, ...; leading zeros are preserved."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", spec)
    if match is None:
        yield spec
        return
    first, last, listed_names = match.groups()
    if listed_names is None:
        if int(last) - int(first) >= MOST_SHARDS:
            raise SourceError(f"{spec}: {{{first}..{last}}} names more than {MOST_SHARDS:,} shards.")
        width = len(first) if first.startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    else:
        choices = listed_names.split(",")
    for choice in choices:
        yield from braces(spec[: match.start()] + choice + spec[match.end() :])


def groups(members: Members) -> Iterator[Group]:
    """The samples of one tar: members that share a name up to the first dot, in the order they stand."""
    key = ""
    parts: dict[str, tuple[int, int]] = {}
    for name, span in zip(members.each_name(), members.spans.tolist(), strict=True):
        dot = name.find(".", name.rfind("/") + 1)
        whole = name[:dot] if dot >= 0 else name
        if whole != key and parts:
            yield Group(key, parts)
            parts = {}
        key = whole
        ending = name[name.rfind(".") + 1 :].lower() if dot >= 0 else ""
        if ending in ENDINGS:
            parts[ending] = (span[0], span[1])
    if parts:
        yield Group(key, parts)
