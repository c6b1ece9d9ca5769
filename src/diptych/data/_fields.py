"""Which columns of a list hold the image, the captions, the label and its name: decided once, over a sample of rows.

One rule for every format with rows (CSV, JSON Lines, JSON, Parquet): names are compared without capitals, blanks and underscores,
the first of the table in ``_columns`` counts, flags win. What the values are (a text, a list, a list written as text) belongs to
``_caption_values``. Reads no file: formats hand rows in.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from diptych import log
from diptych.data._base import SourceOptions
from diptych.data._caption_values import Shape, shape_of, texts_of
from diptych.data._columns import (
    CAPTION_KEYS,
    IMAGE_KEYS,
    LABEL_KEYS,
    LABEL_NAME_KEYS,
    SPLIT_KEY,
    label_of,
    plain_name,
    seen,
)  # fmt: skip
from diptych.data._label_values import all_differ, are_names, check_pairs, is_missing
from diptych.errors import RecordError, SourceError

NUMBERED = re.compile(r"(.*?\D)[ _.-]?(\d{1,2})")
ADDRESSES = ("url", "imageurl", "imgurl", "cocourl")
Row = Mapping[str, Any]


class Values(NamedTuple):
    """What one row says: ``image`` as it stands, all captions, the class's number and its name."""

    image: Any
    captions: tuple[str, ...]
    label: int | None
    label_name: str | None


@dataclass(frozen=True)
class Fields:
    """The decision. ``image`` and ``captions`` hold columns to try in order, or, with ``joined``, all to be taken.

    A column is a path into nested objects; nearly always of one part. ``named``: labels are names; their
    ``numbers`` are handed over later, since finding all names takes a pass over the file.
    """

    where: str
    image: tuple[tuple[str, ...], ...]
    captions: tuple[tuple[str, ...], ...] = ()
    joined: bool = False
    label: str = ""
    label_name: str = ""
    split: str = ""
    named: bool = False
    shape: Shape = field(default_factory=Shape)
    numbers: Mapping[str, int] | None = None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of their numbers, where labels are names."""
        return None if self.numbers is None else tuple(self.numbers)

    def with_classes(self, classes: Sequence[str]) -> Fields:
        """The same, with the number of every name."""
        return dataclasses.replace(self, numbers={name: number for number, name in enumerate(classes)})

    def columns(self) -> tuple[str, ...]:
        """The columns that are read, each once."""
        used = [path[0] for path in (*self.image, *self.captions)] + [self.label, self.label_name]
        return tuple(dict.fromkeys(name for name in used if name))

    def paths(self, rows: Sequence[Row]) -> list[str]:
        """The images of some rows, where they are paths."""
        values = (_first(row, self.image) for row in rows)
        return [value for value in values if isinstance(value, str)]

    def read(self, row: Row, key: str) -> Values:
        """What a row says. Raises RecordError naming ``key`` for what is no image, no caption or no label."""
        image = _image(_first(row, self.image), key)
        if self.joined:
            captions = tuple(text for path in self.captions for text in texts_of(_at(row, path), self.shape, key))
        else:
            captions = texts_of(_first(row, self.captions), self.shape, key) if self.captions else ()
        name = row.get(self.label_name) if self.label_name else None
        label = self._label(row.get(self.label), bool(captions), key) if self.label else None
        return Values(image, captions, label, name if isinstance(name, str) and name.strip() else None)

    def _label(self, value: Any, captioned: bool, key: str) -> int | None:
        if is_missing(value):
            if captioned:
                return None
            raise RecordError(key, f"has no label under {self.label!r}", "give it one, or leave it out")
        if self.numbers is not None:
            if (name := str(value).strip()) in self.numbers:
                return self.numbers[name]
        elif (label := label_of(value)) is not None:
            return label
        what = "one of the classes" if self.numbers is not None else "a whole number, as the others are"
        raise RecordError(key, f"its {self.label} {str(value)[:40]!r} is not {what}", "correct it, or leave it out")


def decide(rows: Sequence[Row], where: str, options: SourceOptions) -> Fields:
    """Decide by the sampled rows of a list; what was guessed is said in one line. Raises SourceError."""
    names = list(dict.fromkeys(str(name) for row in rows for name in row))
    image = (
        (_asked(rows, names, options.csv_img_key, where, "--csv-img-key"),)
        if options.csv_img_key else _covering(rows, names, IMAGE_KEYS)
    )  # fmt: skip
    if not image:
        raise SourceError(_no_image(names, where))
    taken = {path[0] for path in image}
    free = [name for name in names if name not in taken]
    label, label_name = known_name(free, LABEL_KEYS), known_name(free, LABEL_NAME_KEYS)
    captions, joined = _captions(rows, free, where, options)
    if not captions and not label:
        # A name of a class alone labels a picture, but "name" may be anything.
        label = known_name(free, tuple(name for name in LABEL_NAME_KEYS if name != "name"))
        label_name = "" if label == label_name else label_name
    if not captions and not label:
        raise SourceError(
            f"{where}: no column for captions; columns seen: {seen(names)}; name it with --csv-caption-key."
        )
    if len(image) > 1:
        say(f"{where}: images are those under {' or '.join(map(repr, map('.'.join, image)))}, whichever a row has")
    named = bool(label) and are_names(rows, label, where)
    if named and captions and all_differ(rows, label):
        if (label,) not in captions:
            say(f"{where}: {label!r} is another text in nearly every row and is not taken for classes")
        label, named = "", False
    if label and label_name:
        check_pairs(rows, label, label_name, where)
    values = [_at(row, path) for row in rows for path in captions]
    keys = [f"{where}, {_short(_first(row, image))}" for row in rows for _ in captions]
    flag = "--csv-caption-key"
    shape = shape_of(values, keys, where, ".".join(captions[0]) if captions else "", flag)
    if shape.said:
        say(f"{where}: {shape.said}")
    return Fields(where, image, captions, joined, label, label_name, known_name(free, (SPLIT_KEY,)), named, shape)


@cache
def say(line: str) -> None:
    """Log a line once in this process, however often a file is opened."""
    log.info(line)


def split_column(names: Sequence[str]) -> str:
    """The column that names splits, or ""."""
    return known_name(names, (SPLIT_KEY,))


def known_name(names: Sequence[str], known: tuple[str, ...]) -> str:
    """The first of the known names that is there, as it is written there; "" for none."""
    plain = {plain_name(name): name for name in reversed(names)}
    return next((plain[wanted] for wanted in map(plain_name, known) if wanted in plain), "")


def _covering(rows: Sequence[Row], names: Sequence[str], known: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The first known name that is there, and further ones for rows that lack the ones before."""
    chosen: list[str] = []
    rest, free = list(rows), list(names)
    while rest and (name := known_name(free, known)):
        free.remove(name)
        left = [row for row in rest if row.get(name) is None]
        if len(left) < len(rest) or (not chosen and name in names and not left):
            chosen.append(name)
            rest = left
    return tuple((name,) for name in chosen)


def _captions(
    rows: Sequence[Row], names: list[str], where: str, options: SourceOptions
) -> tuple[tuple[tuple[str, ...], ...], bool]:
    """The columns of captions, and whether all of them are taken."""
    if options.csv_caption_key:
        flag, asked = "--csv-caption-key", options.csv_caption_key
        every = list(dict.fromkeys(str(name) for row in rows for name in row))
        parts = [asked] if asked in every or "," not in asked else [part.strip() for part in asked.split(",")]
        return tuple(_asked(rows, every, part, where, flag) for part in parts), len(parts) > 1
    numbered = _numbered(names)
    single = _covering(rows, names, CAPTION_KEYS)
    known = [plain_name(name) for name in CAPTION_KEYS]
    # A bare "caption" beside "caption_1" belongs to the numbered ones; another name goes by precedence.
    if numbered:
        base = known.index(plain_name(_base(numbered[-1])))
        before = [path for path in single if path[0] not in numbered and known.index(plain_name(path[0])) < base]
        if not before:
            say(f"{where}: the columns {seen(numbered)} are the captions of one image")
            return tuple((name,) for name in numbered), True
    used = {path[0] for path in single}
    others = [name for name in names if plain_name(name) in known and name not in used]
    if len(single) > 1:
        say(f"{where}: captions are those under {' or '.join(repr(path[0]) for path in single)}, whichever a row has")
    if others and single:
        say(f"{where}: captions are those of {single[0][0]!r}, not of {seen(others)}; --csv-caption-key chooses")
    return single, False


def _base(name: str) -> str:
    match = NUMBERED.fullmatch(name)
    return match[1].rstrip(" _.-") if match else name


def _numbered(names: Sequence[str]) -> list[str]:
    """Columns of one known name with numbers behind it, in the order of numbers; the bare name, if there, is the first."""
    known = {plain_name(name) for name in CAPTION_KEYS}
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        match = NUMBERED.fullmatch(name)
        if match and plain_name(match[1].rstrip(" _.-")) in known:
            groups.setdefault(plain_name(match[1].rstrip(" _.-")), []).append((int(match[2]), name))
    best = next((plain_name(name) for name in CAPTION_KEYS if plain_name(name) in groups), None)
    if best is None:
        return []
    bare = [(-1, name) for name in names if plain_name(name) == best]
    return [name for _, name in sorted(bare + groups[best], key=lambda item: item[0])]


def _asked(rows: Sequence[Row], names: Sequence[str], asked: str, where: str, flag: str) -> tuple[str, ...]:
    """The column that a flag names: as it is written, else as it is compared, else a path with dots."""
    if asked in names:
        return (asked,)
    if column := known_name(names, (asked,)):
        return (column,)
    path = tuple(asked.split("."))
    if len(path) > 1 and any(_at(row, path) is not None for row in rows):
        return path
    raise SourceError(f"{where}: no column {asked!r} ({flag}); columns seen: {seen(names)}.")


def _no_image(names: Sequence[str], where: str) -> str:
    address = next((name for name in names if plain_name(name) in ADDRESSES), "")
    advice = (
        f" (the addresses under {address!r} are no images: download them with img2dataset, or read one by one with "
        f"--csv-img-key {address})" if address else ""
    )  # fmt: skip
    return f"{where}: no column for images; columns seen: {seen(names)}; name it with --csv-img-key{advice}."


def _at(row: Row, path: tuple[str, ...]) -> Any:
    value: Any = row.get(path[0])
    for part in path[1:]:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _first(row: Row, paths: tuple[tuple[str, ...], ...]) -> Any:
    """The first value that is there."""
    for path in paths:
        value = _at(row, path)
        if value is not None:
            return value
    return None


def _image(value: Any, key: str) -> Any:
    """A path, bytes, or Hugging Face's {bytes, path}; a list of one is that one."""
    if isinstance(value, list | tuple):
        if len(value) > 1:
            raise RecordError(key, f"names {len(value)} images", "one row has one image")
        value = value[0] if value else None
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or value.get("url")
    if value is None or (isinstance(value, str | bytes | bytearray) and not value):
        raise RecordError(key, "has no image", "leave it out")
    if not isinstance(value, str | bytes | bytearray):
        raise RecordError(key, f"its image is {value!r:.40}, expected a path", "name the column with --csv-img-key")
    return value


def _short(value: Any) -> str:
    return str(value)[:80] if isinstance(value, str) else "a row"
