"""WebDataset: tar shards whose members, grouped by name, are an image and its texts.

    KEY.jpg (png, jpeg, webp, gif, bmp) + KEY.txt and/or KEY.json {"captions": [...], "label": 3} (+ KEY.cls)

A tar is random access once its headers are read, so it is a source like any other: nothing is streamed, and any number of
shards serves any number of ranks. Shards are named by a path, a pattern (``train-*.tar``), or braces (``{000..099}.tar``).
A gzipped tar cannot be read at an offset: it is unpacked once into the cache folder (DIPTYCH_CACHE, else the user's own).
Remote shards (s3://, http://, ...) are read by ranges; what cannot be (a store without ranges, ``pipe:COMMAND``) is copied into
the cache once, since a stream has no place to come back to.
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
from diptych.data._base import SOURCES, SourceOptions
from diptych.data._columns import CAPTION_KEYS, OWN_GROUP, OWN_KEY, captions_of, label_of, parsed
from diptych.data._index import Reader, checked_file, unpacked
from diptych.data._remote import has_ranges, is_remote, listed, piped
from diptych.data._tar import Members, members_of
from diptych.errors import SourceError
from diptych.files import cache_folder
from diptych.types import Record

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
TEXTS = ("json", "txt", "cls")
KINDS = frozenset((*IMAGES, *TEXTS))
ABSENT = -1
PIPE = "pipe:"
MOST_SHARDS = 1_000_000  # more is a slip of the pen, and would fill the memory with names


class Group(NamedTuple):
    """The members of one sample: its key, and offset and size of the image and of each kind of text."""

    key: str
    members: dict[str, tuple[int, int]]


@SOURCES.register("webdataset")
class WebDataset:
    """Tar shards as a source."""

    priority: ClassVar[int] = 15
    example: ClassVar[str] = "shards-{000..099}.tar"
    classes: tuple[str, ...] | None = None

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
        if len(set(names)) < len(names):  # a/000.tar and b/000.tar hold other pictures
            names = [f"{number}/{name}" for number, name in enumerate(names)]
        for number, (path, members) in enumerate(zip(paths, _indexed(paths), strict=True)):
            _tell(str(path), members)
            name, met = names[number], set[str]()
            for group in groups(members):
                image = next((group.members[kind] for kind in IMAGES if kind in group.members), None)
                if image is None or not ({"json", "txt", "cls"} & set(group.members)):
                    dropped += 1
                    continue
                texts = [group.members.get(kind, (ABSENT, 0)) for kind in TEXTS]
                self._keys.append(f"{name}/{group.key}")
                twice += group.key in met
                met.add(group.key)
                rows.append((number, *image, *itertools.chain(*texts)))
        if twice:
            log.warn(f"{spec}: {twice} keys come twice within a shard; both are used.")
            self._keys = [f"{key}#{place}" for place, key in enumerate(self._keys)]
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
        shard, *places = self._table[index].tolist()
        reader, key = self._readers[shard], self._keys[index]
        image = reader.read(places[0], places[1])
        parts = zip(places[2::2], places[3::2], strict=True)
        texts = {kind: reader.read(*part) for kind, part in zip(TEXTS, parts, strict=True) if part[0] != ABSENT}
        captions, label, about = _described(texts, key)
        # Shards of ours carry the key and the picture's name that their source gave.
        named, group = about.get(OWN_KEY), about.get(OWN_GROUP)
        key = named if isinstance(named, str) else key
        return Record(key, image, captions, label, group if isinstance(group, str) else None, about)


def _described(texts: dict[str, bytes], key: str) -> tuple[tuple[str, ...], int | None, dict[str, Any]]:
    """Captions and label of a sample, the JSON's when it has some, else the text file's; and what else the JSON says."""
    captions: tuple[str, ...] = ()
    label: int | None = None
    about: Any = {}
    if "json" in texts:
        about = parsed(texts["json"], f"{key}.json")
        found = (
            next((about[name] for name in CAPTION_KEYS if about.get(name)), None) if isinstance(about, dict) else None
        )
        captions = captions_of(found)
        label = label_of(about.get("label")) if isinstance(about, dict) else None
    if not captions and "txt" in texts:
        captions = (texts["txt"].decode("utf-8", errors="replace").strip(),)
    if "cls" in texts and (told := label_of(texts["cls"])) is not None:
        label = told
    return captions, label, about if isinstance(about, dict) else {}


def _indexed(paths: Sequence[Path | str]) -> list[Members]:
    """The members of all shards, several at a time: reading headers is mostly waiting for the disk or the network."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, len(paths) or 1)) as pool:
        return list(pool.map(members_of, map(str, paths)))


def _tell(path: str, members: Members) -> None:
    if not members.whole:
        log.warn(f"{path}: cut short; what stands before the cut is used.")
    if members.outside:
        log.warn(f"{path}: {members.outside} members point outside of the archive and are left out.")


def shards(spec: str) -> list[Path | str]:
    """The files that a path, pattern or brace expression names, in order. Raises SourceError when there are none.

    Gzipped ones are unpacked into the cache; remote ones stay where they are, unless they are gzipped.
    """
    found: list[Path | str] = []
    for name in braces(spec):
        magic = glob.has_magic(name) and not name.startswith(PIPE)
        matching = (listed(name) if is_remote(name) else sorted(glob.glob(name))) if magic else [name]
        if not matching:
            raise SourceError(f"{name}: no file matches this pattern.")
        found += [_shard(one) for one in matching]
    return found


def _shard(name: str) -> Path | str:
    if name.startswith(PIPE):
        return unpacked(piped(name.removeprefix(PIPE), cache_folder() / "remote"))
    if is_remote(name) and not name.lower().endswith((".gz", ".tgz")) and has_ranges(name):
        return name
    return unpacked(checked_file(name))


def braces(spec: str) -> Iterator[str]:
    """``a{00..02}b{x,y}`` -> a00bx, a00by, a01bx, ...; zeros in front are kept."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", spec)
    if match is None:
        yield spec
        return
    first, last, words = match.groups()
    if words is None:
        if int(last) - int(first) >= MOST_SHARDS:
            raise SourceError(f"{spec}: {{{first}..{last}}} names more than {MOST_SHARDS:,} shards.")
        width = len(first) if first.startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    else:
        choices = words.split(",")
    for choice in choices:
        yield from braces(spec[: match.start()] + choice + spec[match.end() :])


def groups(members: Members) -> Iterator[Group]:
    """The samples of one tar: members that share a name up to the first dot, in the order they stand."""
    key = ""
    found: dict[str, tuple[int, int]] = {}
    for name, place in zip(members.each_name(), members.places.tolist(), strict=True):
        dot = name.find(".", name.rfind("/") + 1)
        whole = name[:dot] if dot >= 0 else name
        if whole != key and found:
            yield Group(key, found)
            found = {}
        key = whole
        kind = name[name.rfind(".") + 1 :].lower() if dot >= 0 else ""
        if kind in KINDS:
            found[kind] = (place[0], place[1])
    if found:
        yield Group(key, found)
