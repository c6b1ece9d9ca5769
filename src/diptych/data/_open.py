"""From a path or pattern to a source: which format reads it, which split of it, and several joined.

Knows no format by name: the registry lists them, and each says what it matches and with which priority.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from diptych import log
from diptych.data._base import SOURCES, Format, LeftOut, Source, SourceOptions
from diptych.errors import ConfigError, SourceError
from diptych.types import Record

TRAIN_SPLITS = ("train",)
VALIDATION_SPLITS = ("val", "validation", "valid", "dev", "test")


@cache
def _formats(names: tuple[str, ...]) -> tuple[type[Format], ...]:
    """The named formats in the order in which they are asked."""
    return tuple(sorted(map(SOURCES.get, names), key=lambda item: (item.priority, item.example)))


def known_data() -> str:
    """How data of every registered format is named, for help and errors: "a folder, pairs.csv, ..."."""
    return ", ".join(item.example for item in _formats(tuple(SOURCES.names())))


def open_source(spec: str, *, split: str = "", options: SourceOptions | None = None) -> Source:
    """Open what ``--train-data`` and its like name: a path, a pattern, or several joined by ``::``.

    ``split`` selects the records of that split only. Raises SourceError for what is missing, empty or of no known format,
    ConfigError for an unknown format or one that two formats claim.
    """
    options = options or SourceOptions()
    parts = [_open_part(part, split, options) for part in spec.split("::") if part]
    if not parts:
        raise SourceError(f"no data was named: give one of {known_data()}.")
    return parts[0] if len(parts) == 1 else ConcatSource(parts)


def open_split(
    spec: str, split: str, preferred: tuple[str, ...], options: SourceOptions, flag: str = "--split"
) -> Source:
    """Open a source; where it has several splits and none was named, take the first of ``preferred`` and log it.

    ``flag`` names the command line's option for the split in errors. Raises ConfigError when none of the preferred exists.
    """
    source = open_source(spec, split=split, options=options)
    splits = source.splits()
    if split or len(splits) < 2:
        return source
    chosen = next((name for name in preferred if name in splits), None)
    if chosen is None:
        raise ConfigError(f"{spec} has the splits {', '.join(sorted(splits))}; name one with {flag}.")
    log.info(f"{spec}: taking the split {chosen!r} ({splits[chosen]} of {len(source)} records)")
    return open_source(spec, split=chosen, options=options)


def _open_part(spec: str, split: str, options: SourceOptions) -> Source:
    known = options.dataset_type != "auto"
    source = (SOURCES.get(options.dataset_type) if known else _format_of(spec)).open(spec, split, options)
    if len(source) == 0:
        raise SourceError(f"{spec}: holds no record that can be used.")
    return source


def _format_of(spec: str) -> type[Format]:
    matching = [item for item in _formats(tuple(SOURCES.names())) if item.matches(spec)]
    first = [item for item in matching if item.priority == matching[0].priority]
    if len(first) == 1:
        return first[0]
    names = "|".join(SOURCES.names())
    if first:
        claims = " and ".join(sorted(item.__name__ for item in first))
        raise ConfigError(f"{spec}: the formats {claims} both read this name; choose with --dataset-type {names}.")
    if not Path(spec).exists():
        raise SourceError(f"{spec}: no such file or folder.")
    raise SourceError(f"{spec}: its name matches no known format; choose one with --dataset-type {names}.")


class ConcatSource:
    """Several sources in sequence, as a single source."""

    classes: tuple[str, ...] | None = None

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.name = "::".join(source.name for source in sources)
        self.parts = [f"{number}/{source.name}" for number, source in enumerate(sources)]  # two may share a name
        self._ends = np.cumsum([len(source) for source in sources])
        if any(source.classes for source in sources):
            raise ConfigError(
                "class folders cannot be joined with ::, since their labels would collide; name one folder."
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def record(self, index: int) -> Record:
        """The record; keys and groups carry the number of their source, which makes them unique."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        record = self.sources[number].record(index - (int(self._ends[number - 1]) if number else 0))
        group = None if record.group is None else f"{number}/{record.group}"
        key, part = f"{number}/{record.key}", self.parts[number]
        return Record(key, record.image, record.captions, record.label, group, record.extra, part)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """That of all parts."""
        return tuple(item for source in self.sources for item in source.left_out)

    def splits(self) -> dict[str, int]:
        """The splits of all parts, added up."""
        total: dict[str, int] = {}
        for source in self.sources:
            for name, count in source.splits().items():
                total[name] = total.get(name, 0) + count
        return total
