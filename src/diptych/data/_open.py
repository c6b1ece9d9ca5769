"""From a path or pattern to a source: which format reads it, which split of it, and several joined.

Knows no format by name: the registry lists them, and each says what it matches and with which priority.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from diptych import log
from diptych.data._base import SOURCES, Format, LeftOut, Source, SourceOptions
from diptych.data._left_out import reasons, say_left_out
from diptych.data._missing import missing
from diptych.data._unused import Opened, check_options
from diptych.errors import ConfigError, SourceError
from diptych.files import StrPath
from diptych.image import image_endings
from diptych.types import Record

TRAIN_SPLITS = ("train",)
MOST_NAMES = 10
ADVICE = {
    (".zip", ".rar", ".7z"): "unpack it and give the folder",
    (
        ".tar.bz2",
        ".tar.xz",
        ".tar.zst",
        ".tbz2",
        ".txz",
    ): "of compressed tars only gzipped ones are read: pack it again",
    (".xlsx", ".xls", ".ods"): "save it as CSV",
    (".arrow", ".feather", ".tfrecord", ".lmdb", ".h5", ".hdf5", ".npz", ".pkl", ".pt"): "write it as one of those",
}
VALIDATION_SPLITS = ("val", "validation", "valid", "dev", "test")


@cache
def _formats(names: tuple[str, ...]) -> tuple[type[Format], ...]:
    """The named formats in the order in which they are asked."""
    return tuple(sorted(map(SOURCES.get, names), key=lambda item: (item.priority, item.example)))


def known_data() -> str:
    """How data of every registered format is named, for help and errors: "a folder, pairs.csv, ..."."""
    return ", ".join(item.example for item in _formats(tuple(SOURCES.names())))


def open_source(spec: StrPath, *, split: str = "", options: SourceOptions | None = None, alone: bool = True) -> Source:
    """Open what ``--train-data`` and its like name: a path, a pattern, or several joined by ``::``.

    ``split`` selects the records of that split only. ``alone=False``: other sources share the options, and the caller runs
    ``check_options`` on all of them. Raises SourceError for what is missing, empty or of no known format,
    ConfigError for an unknown format, one that two formats claim, or an option that the data cannot use.
    """
    opened = options or SourceOptions()
    source = _joined([_open_part(part, split, opened) for part in _parts(spec)])
    if alone:
        check_options([Opened(source, opened)])
    return source


def open_split(
    spec: StrPath, split: str, preferred: tuple[str, ...], options: SourceOptions, flag: str = "--split"
) -> Source:
    """Open a source; of each part that has several splits, where none was named, take the first of ``preferred`` and log it.

    A part with a single split is taken whole, and that is logged. ``flag`` names the option for the split in errors. Other
    sources may use options that this one cannot: ``check_options`` looks at all.
    Raises ConfigError when none of the preferred exists.
    """
    return _joined([_open_part_split(part, split, preferred, options, flag) for part in _parts(spec)])


def _parts(spec: StrPath) -> list[str]:
    parts = [part.strip() for part in os.fspath(spec).split("::") if part.strip()]
    if not parts:
        raise SourceError(f"no data was named: give one of {known_data()}.")
    return parts


def _joined(parts: list[Source]) -> Source:
    return parts[0] if len(parts) == 1 else ConcatSource(parts)


def _open_part_split(spec: str, split: str, preferred: tuple[str, ...], options: SourceOptions, flag: str) -> Source:
    with log.held() as lines:
        source = _open_part(spec, split, options)
        splits = source.splits()
        if split or len(splits) < 2:
            for name, count in splits.items() if not split else ():
                log.info(
                    f"{spec}: its only split is {name!r} ({count:,} of {len(source):,} records); it is taken whole"
                )
            return source
        lines.clear()  # opening the split says it again
    chosen = next((name for wanted in preferred for name in splits if name.lower() == wanted), None)
    if chosen is None:
        names = sorted(splits)
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        raise ConfigError(f"{spec} has the splits {', '.join(names[:MOST_NAMES])}{more}; name one with {flag}.")
    log.info(f"{spec}: taking the split {chosen!r} ({splits[chosen]} of {len(source)} records)")
    return _open_part(spec, chosen, options)


def _open_part(spec: str, split: str, options: SourceOptions) -> Source:
    asked = options.dataset_type
    form = _format_of(spec) if asked == "auto" else SOURCES.get(asked)
    try:
        source = form.open(spec, split, options)
    except SourceError as error:
        if asked == "auto" or not os.path.exists(spec) or not _is_recognized(spec) or _format_of(spec) is form:
            raise
        own = next(name for name in SOURCES.names() if SOURCES.get(name) is _format_of(spec))
        raise SourceError(
            f"{error.line} --dataset-type {asked} was given; without it, this is read as {own}."
        ) from error
    if not hasattr(source, "left_out"):  # a format from outside that was written before this was asked for
        vars(source)["left_out"] = ()
    if len(source) == 0:
        why = f" Left out: {reasons(source.left_out)}." if source.left_out else ""
        raise SourceError(f"{spec}: holds no record that can be used.{why}")
    say_left_out(spec, len(source), source.left_out)
    return source


def own_type(spec: str, options: SourceOptions) -> SourceOptions:
    """The options without ``dataset_type`` where the data shows by itself what it is; that is logged.

    For labeled images: open_clip's --dataset-type names the format of pairs, and class folders stand beside them. Where a
    name says nothing, or a folder is to be read as one, the type stays.
    """
    asked = options.dataset_type
    if asked == "auto" or (asked == "folder" and os.path.isdir(spec)) or not all(map(_is_recognized, _parts(spec))):
        return options
    if os.path.exists(spec) and SOURCES.get(asked) is not _format_of(spec):
        log.info(f"{spec}: is read as what it is; --dataset-type {asked} is for pairs")
    return replace(options, dataset_type="auto")


def _is_recognized(spec: str) -> bool:
    matching = [item for item in _formats(tuple(SOURCES.names())) if item.matches(spec)]
    return (
        sum(item.priority == matching[0].priority for item in matching) == 1 if matching else not os.path.exists(spec)
    )


def _format_of(spec: str) -> type[Format]:
    matching = [item for item in _formats(tuple(SOURCES.names())) if item.matches(spec)]
    first = [item for item in matching if item.priority == matching[0].priority]
    if len(first) == 1:
        return first[0]
    names = "|".join(SOURCES.names())
    if first:
        claims = " and ".join(sorted(item.__name__ for item in first))
        raise ConfigError(f"{spec}: the formats {claims} both read this name; choose with --dataset-type {names}.")
    if not os.path.exists(spec):
        raise missing(spec, "no such file or folder")
    raise SourceError(
        f"{spec}: its name matches no known format ({known_data()}){_advice(spec)}; choose one with --dataset-type {names}."
    )


def _advice(spec: str) -> str:
    """What can be done with a file of some well-known endings that no format reads."""
    lowered = spec.lower()
    ending = "." + lowered.rpartition(".")[2]
    if ending in image_endings():
        return ", and it is a picture: give the folder that holds it"
    return next((f", {advice}" for endings, advice in ADVICE.items() if lowered.endswith(endings)), "")


class ConcatSource:
    """Several sources in sequence, as a single source. Labels are passed on where all parts number the same classes."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self.name = "::".join(source.name for source in sources)
        self.parts = [f"{number}/{source.name}" for number, source in enumerate(sources)]  # two may share a name
        self._ends = np.cumsum([len(source) for source in sources])
        self._numbered_alike = len({source.classes for source in sources}) == 1

    def __len__(self) -> int:
        return int(self._ends[-1])

    def record(self, index: int) -> Record:
        """The record; keys and groups carry the number of their source, which makes them unique."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        record = self.sources[number].record(index - (int(self._ends[number - 1]) if number else 0))
        group = None if record.group is None else f"{number}/{record.group}"
        key, part = f"{number}/{record.key}", self.parts[number]
        label = record.label if self._numbered_alike else None
        return Record(key, record.image, record.captions, label, group, record.extra, part)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Those of all parts. Raises ConfigError where parts have others: one number would mean two classes."""
        if not self._numbered_alike:
            raise ConfigError(
                f"{self.name}: the parts joined with :: have other classes each, so their labels would collide; name one of them."
            )
        return self.sources[0].classes

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
