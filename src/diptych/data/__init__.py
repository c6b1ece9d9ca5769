"""Records to batches: one data format per file, and one order, split, mix and resume for all of them.

A source says how many records it has and gives any one of them, still encoded. Everything else is shared: which process reads
which record (``_order``, ``_loader``), decoding and tokenising (``_prepare``), batches (``_collate``). Sources know no
tokenizer, transform, batch size or rank; they know no loss either: objectives say what they want in ``Wants``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from diptych.errors import ConfigError, SourceError
from diptych.registry import Registry
from diptych.types import Record


@dataclass(frozen=True)
class SourceOptions:
    """How data files are read; flags keep open_clip's names."""

    dataset_type: str = "auto"
    """Data format: auto (by the file's name), or csv, jsonl, json, webdataset, parquet, folder, laion, flickr_token."""
    csv_separator: str = ""
    """Separator of a CSV or TSV; empty finds it; \\t is a tab."""
    csv_img_key: str = ""
    """Column or key of image paths; empty looks for filepath, image, image_path, file, ..."""
    csv_caption_key: str = ""
    """Column or key of captions; empty looks for title, caption, text, ..."""
    image_root: str = ""
    """Folder that relative image paths start from; empty takes the data file's own."""


class Source(Protocol):
    """The contract of a data format: random access to records."""

    name: str
    classes: tuple[str, ...] | None

    def __len__(self) -> int:
        """The number of records."""

    def record(self, index: int) -> Record:
        """Record ``index``, from 0; the same one every time, in any process. Raises RecordError or SourceError."""

    def splits(self) -> dict[str, int]:
        """The named splits that the file itself knows, with their sizes; empty when it knows none."""


class Format(Protocol):
    """What a format's file registers: can it read this, and the way in."""

    def matches(self, spec: str) -> bool:
        """Whether a path or pattern looks like this format, by its name or kind."""

    def open(self, spec: str, split: str, options: SourceOptions) -> Source:
        """Open it. Raises SourceError."""


SOURCES: Registry[type[Format]] = Registry(__name__, "data format")


def open_source(spec: str, *, split: str = "", options: SourceOptions | None = None) -> Source:
    """Open what ``--train-data`` and its like name: a path, a pattern, or several joined by ``::``.

    ``split`` keeps the records of that split only. Raises SourceError for what is missing, empty or of no known kind.
    """
    options = options or SourceOptions()
    parts = [_open_one(part, split, options) for part in spec.split("::") if part]
    if not parts:
        raise SourceError("no data was named: give a .jsonl, .csv, .tsv, shards {000..099}.tar or a folder.")
    return parts[0] if len(parts) == 1 else ConcatSource(parts)


def _open_one(spec: str, split: str, options: SourceOptions) -> Source:
    if options.dataset_type != "auto":
        return _checked(SOURCES.get(options.dataset_type).open(spec, split, options), spec)  # type: ignore[call-arg, arg-type]
    for name in SOURCES.names():
        entry = SOURCES.get(name)
        if entry.matches(spec):  # type: ignore[call-arg, arg-type]
            return _checked(entry.open(spec, split, options), spec)  # type: ignore[call-arg, arg-type]
    if not Path(spec).exists():
        raise SourceError(f"{spec}: no such file or folder.")
    raise SourceError(
        f"{spec}: its name says no known format; choose one with --dataset-type {'|'.join(SOURCES.names())}."
    )


def _checked(source: Source, spec: str) -> Source:
    if len(source) == 0:
        raise SourceError(f"{spec}: holds no record that can be used.")
    return source


class ConcatSource:
    """Several sources, one after the other, as one."""

    classes: tuple[str, ...] | None = None

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.name = "::".join(source.name for source in sources)
        self.parts = [f"{place}/{source.name}" for place, source in enumerate(sources)]  # two may have one name
        self._ends = np.cumsum([len(source) for source in sources])
        if any(source.classes for source in sources):
            raise ConfigError(
                "class folders cannot be joined with ::, since their labels would collide; name one folder."
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def record(self, index: int) -> Record:
        """The record; keys and pictures' names carry the number of their source, which makes them unique."""
        place = int(np.searchsorted(self._ends, index, side="right"))
        found = self.sources[place].record(index - (int(self._ends[place - 1]) if place else 0))
        group = None if found.group is None else f"{place}/{found.group}"
        key, part = f"{place}/{found.key}", self.parts[place]
        return Record(key, found.image, found.captions, found.label, group, found.extra, part)

    def splits(self) -> dict[str, int]:
        """The splits of all parts, added up."""
        total: dict[str, int] = {}
        for source in self.sources:
            for name, count in source.splits().items():
                total[name] = total.get(name, 0) + count
        return total


from diptych.data._captions import CaptionPerRecord  # noqa: E402 (the rooms below use the contract above)
from diptych.data._collate import collate  # noqa: E402
from diptych.data._loader import Loader, Position  # noqa: E402
from diptych.data._order import Mixture  # noqa: E402
from diptych.data._prepare import PRECOMPUTED_FEATURES, Prepare  # noqa: E402

__all__ = [
    "PRECOMPUTED_FEATURES",
    "SOURCES",
    "CaptionPerRecord",
    "Format",
    "Loader",
    "Mixture",
    "Position",
    "Prepare",
    "Source",
    "SourceOptions",
    "collate",
    "open_source",
]
