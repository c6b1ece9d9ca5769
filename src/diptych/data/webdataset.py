"""WebDataset: tar shards whose members, grouped by name, are a picture and its texts.

    KEY.jpg (any picture) + KEY.txt, KEY.caption, KEY.json {"captions": [...], "label": 3}, KEY.cls

Which members belong together is decided in ``_members``, what the texts say in ``_beside``. A tar is random access once its
headers are read, so it is a source like any other: nothing is streamed, and any number of shards serves any number of ranks.
Shards are named by a path, a folder, a pattern (``train-*.tar``), or braces (``{000..099}.tar``). A gzipped tar cannot be read at
an offset: it is unpacked once into the cache folder (DIPTYCH_CACHE, else the user's own). Remote shards (s3://, http://, ...) are
read by ranges; what cannot be (a store without ranges, ``pipe:COMMAND``) is copied into the cache once, since a stream cannot be
read at an offset.
"""

from __future__ import annotations

import concurrent.futures
import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from diptych import log
from diptych.data._base import SOURCES, LeftOut, SourceOptions
from diptych.data._beside import TEXTS, as_number, described, inspect_texts, numbered
from diptych.data._columns import OWN_GROUP, OWN_KEY
from diptych.data._index import Reader, checked_file, unpacked
from diptych.data._members import ABSENT, COLUMNS, Endings, merged, samples_of
from diptych.data._missing import missing
from diptych.data._remote import has_ranges, is_remote, listed, piped
from diptych.data._tar import Members, members_of
from diptych.errors import RecordError, SourceError
from diptych.files import cache_folder
from diptych.types import Record

PIPE = "pipe:"
MOST_SHARDS = 1_000_000  # more is a slip of the pen, and would fill the memory with names
INSPECTED = 8  # samples whose texts are read while opening


@SOURCES.register("webdataset")
class WebDataset:
    """Tar shards as a source."""

    priority: ClassVar[int] = 15
    example: ClassVar[str] = "shards-{000..099}.tar"
    uses: ClassVar[frozenset[str]] = frozenset(
        (
            "csv_img_key",
            "csv_caption_key",
        )
    )
    classes: tuple[str, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()

    def __init__(self, spec: str, split: str, options: SourceOptions, files: Sequence[str] = ()) -> None:
        if split:
            raise SourceError(f"{spec}: shards have no splits; name the shards of {split!r} instead.")
        paths = [_shard(path) for path in files] or shards(spec)
        self.name = Path(spec).name
        self._readers = [Reader(path) for path in paths]
        self._caption_key = options.csv_caption_key
        endings = Endings(options.csv_img_key, options.csv_caption_key)
        names = [str(path).rpartition("/")[2] for path in paths]
        if len(set(names)) < len(names):  # a/000.tar and b/000.tar hold other images
            names = [f"{number}/{name}" for number, name in enumerate(names)]
        self._keys: list[str] = []
        tables, left_out, twice = [], [], 0
        for number, (name, path, members) in enumerate(zip(names, paths, _indexed(paths), strict=True)):
            if not members.whole:
                log.warn(f"{path}: truncated; the whole members before its end are used.")
            samples = samples_of(members, endings, name)
            self._keys += [f"{name}/{key}" for key in samples.keys]
            shard = np.full((len(samples.keys), 1), number, dtype=np.int64)
            tables.append(np.concatenate([shard, samples.spans.reshape(len(samples.keys), 2 * COLUMNS)], axis=1))
            left_out.append(samples.left_out)
            twice += samples.twice
        if twice:
            log.warn(f"{spec}: {twice} keys come twice within a shard; both are used.")
            self._keys = [f"{key}#{number}" for number, key in enumerate(self._keys)]
        self._table, self.left_out = np.concatenate(tables), merged(left_out)
        self._numbers: Mapping[str, int] | None = None
        if self._keys:
            self._inspect(spec, options, endings.image)

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
        """One sample, its image still encoded. Raises RecordError for texts that say nothing usable."""
        shard, offset, size = self._table[index, :3].tolist()
        key = self._keys[index]
        captions, label, metadata = described(self._texts(index), key, self._caption_key)
        # Shards of ours carry the key and the image's name that their source gave.
        named, group = metadata.get(OWN_KEY), metadata.get(OWN_GROUP)
        return Record(
            named if isinstance(named, str) else key,
            self._readers[shard].read(offset, size),
            captions,
            numbered(label, self._numbers, key),
            group if isinstance(group, str) else None,
            metadata,
        )

    def _texts(self, index: int, endings: Sequence[str] = TEXTS) -> dict[str, bytes]:
        shard, *spans = self._table[index].tolist()
        parts = ((ending, spans[2 * column], spans[2 * column + 1]) for column, ending in enumerate(TEXTS, start=1))
        reader = self._readers[shard]
        return {
            ending: reader.read(offset, size)
            for ending, offset, size in parts
            if offset != ABSENT and ending in endings
        }

    def _inspect(self, spec: str, options: SourceOptions, asked_image: str) -> None:
        """Look at the texts of a few samples, and number the labels where those are names."""
        if options.csv_img_key and not asked_image:
            log.info(f"{spec}: --csv-img-key {options.csv_img_key} is no ending of a picture; any picture is taken")
        indices = sorted({int(index) for index in np.linspace(0, len(self) - 1, INSPECTED)})
        samples = [(self._keys[index], self._texts(index)) for index in indices]
        if inspect_texts(samples, spec, self._caption_key):
            if not all(isinstance(reader.path, Path) for reader in self._readers):
                raise SourceError(f"{spec}: its labels are names, which remote shards cannot have; write numbers.")
            labels = {self._label(index) for index in range(len(self))} - {""}
            if any(as_number(label) is not None for label in labels):
                raise SourceError(
                    f"{spec}: some labels are names and some are numbers ({', '.join(sorted(labels)[:10])}); write one kind."
                )
            self.classes = tuple(sorted(labels))
            self._numbers = {name: number for number, name in enumerate(self.classes)}
            log.info(f"{spec}: {len(labels)} classes from the names in its labels ({', '.join(self.classes[:3])}, ...)")

    def _label(self, index: int) -> str:
        try:
            label = described(self._texts(index, ("cls", "json")), self._keys[index]).label
        except RecordError:  # said when its turn comes
            return ""
        return "" if label is None else str(label)


def _indexed(paths: Sequence[Path | str]) -> list[Members]:
    """The members of all shards, several at a time: reading headers is mostly waiting for the disk or the network."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, len(paths) or 1)) as pool:
        return list(pool.map(members_of, map(str, paths)))


def shards(spec: str) -> list[Path | str]:
    """The files that a path, pattern or brace expression names, in order. Raises SourceError when there are none.

    Gzipped ones are unpacked into the cache; remote ones stay where they are, unless they are gzipped.
    """
    if os.path.isdir(spec):  # --dataset-type webdataset
        spec = f"{glob.escape(spec)}/*.tar"
    files: list[Path | str] = []
    for name in braces(spec):
        magic = glob.has_magic(name) and not name.startswith(PIPE)
        matching = (listed(name) if is_remote(name) else sorted(glob.glob(name))) if magic else [name]
        if not matching:
            raise missing(name, "no file matches this pattern")
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
