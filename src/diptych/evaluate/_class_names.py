"""Which name belongs to which class: a list of names and the classes of a source, joined by what they say.

Two lists that only happen to be of one length are the commonest way to a wrong score, so position is the last resort, and said.
The rules stand in docs/files.md. It reads lists of names; it opens no images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych import log
from diptych.errors import ConfigError
from diptych.evaluate._clean_names import clean_names, hint
from diptych.evaluate._prompts import class_set, class_sets, lines_of, readable
from diptych.files import StrPath
from diptych.text import texts_of

SHOWN = 5  # names in a message
_said: set[tuple[str, ...]] = set()


@dataclass(frozen=True)
class NameList:
    """Names in the list's order and, where the list says it, the id of each (a folder's name, a WordNet id, a number)."""

    where: str
    names: tuple[str, ...]
    ids: tuple[str, ...] | None = None


def class_names(
    folders: Sequence[str] | None,
    labels: StrPath | Sequence[str] | None = None,
    source: str = "source",
    *,
    clean: bool = False,
) -> tuple[str, ...]:
    """Return one readable name per class, in the order of ``folders``, the source's classes (None: labels are plain numbers).

    ``labels`` is the name of a shipped list (imagenet), a file (a name per line, "id<tab>name" per line, or JSON), or the names
    themselves; None takes the classes' own names, or OpenAI's where they are WordNet ids of ImageNet. Names are joined to
    classes by id, by number (the folder 7 is line 7, from 0), by name, and only then by position. ``clean`` makes words of
    names as files spell them (``clean_names``); a shipped list is left as it is. Classes of one name are said. Raises
    ConfigError when they do not fit, or when ``clean`` would make one name of two.
    """
    folders = None if folders is None else texts_of(folders)
    names, shipped = joined_names(folders, labels, source)
    if clean and not shipped:
        names = clean_names(names)
    else:
        names = tuple(map(readable, names)) if labels is None else names
        if not shipped and (advice := hint(names)):
            log.info(f"{source}: {advice}")
    say_equal_names(names, folders, source)
    return names


def joined_names(
    folders: Sequence[str] | None, labels: StrPath | Sequence[str] | None, source: str
) -> tuple[tuple[str, ...], bool]:
    """A name for each class, as its list or folder spells it, and whether they are those of a shipped list."""
    if labels is None:
        if not folders:
            raise ConfigError(
                f"{source}: has no class names of its own; give labels, a text file with one per line, or 'imagenet'."
            )
        known = class_set("imagenet") if folders[0] in class_set("imagenet") else {}
        return tuple(known.get(folder, folder) for folder in folders), bool(known)
    given = _read(labels)
    shipped = isinstance(labels, str) and labels in class_sets()
    if not given.names:
        raise ConfigError(f"{given.where}: holds no class name.")
    if not folders:
        return given.names, shipped
    for join in (_by_id, _by_number, _by_name):
        joined = join(folders, given, source)
        if joined is not None:
            return joined, shipped
    return _by_position(folders, given, source), shipped


def _by_id(folders: Sequence[str], given: NameList, source: str) -> tuple[str, ...] | None:
    table = dict(zip(given.ids or (), given.names, strict=True)) if given.ids else {}
    known = [folder for folder in folders if folder in table]
    if not known:
        return None
    missing = [folder for folder in folders if folder not in table]
    if missing:
        raise ConfigError(
            f"{given.where}: has no name for {len(missing)} of the {len(folders)} classes of {source}: {_some(missing)}."
        )
    return tuple(table[folder] for folder in folders)


def _by_number(folders: Sequence[str], given: NameList, source: str) -> tuple[str, ...] | None:
    """Folders that are numbers (ImageNetV2's) are lines of the list, counted from 0."""
    if not all(folder.isascii() and folder.isdecimal() for folder in folders):
        return None
    numbers = [int(folder) for folder in folders]
    if max(numbers) >= len(given.names):
        raise ConfigError(
            f"{source}: its class folders are numbers up to {max(numbers)}, and {given.where} has {len(given.names)} names, for "
            f"0 to {len(given.names) - 1}; give a file with NUMBER<tab>NAME per line."
        )
    log.info(f"{source}: class folders are numbers; folder {folders[0]} is line {folders[0]} of {given.where}, from 0")
    return tuple(given.names[number] for number in numbers)


def _by_name(folders: Sequence[str], given: NameList, source: str) -> tuple[str, ...] | None:
    """Lists that name the folders themselves, in whatever order and spelling."""
    table: dict[str, str] = {}
    for name in given.names:
        table.setdefault(_plain(name), name)
    known = [folder for folder in folders if _plain(folder) in table]
    if len(known) == len(folders):
        if len(given.names) > len(folders):
            raise ConfigError(_counts(folders, given, source))
        return tuple(table[_plain(folder)] for folder in folders)
    if known and len(given.names) == len(folders):
        pairs = zip(folders, given.names, strict=True)
        moved = [folder for folder, name in pairs if folder in known and table[_plain(folder)] != name]
        if moved:
            raise ConfigError(
                f"{given.where}: names some classes of {source}, in another order ({_some(moved)}), and others not at all; give "
                "a file with FOLDER<tab>NAME per line."
            )
    return None


def _by_position(folders: Sequence[str], given: NameList, source: str) -> tuple[str, ...]:
    if len(given.names) != len(folders):
        raise ConfigError(_counts(folders, given, source))
    log.info(
        f"{source}: names of {given.where} go in the sorted order of the classes: {folders[0]} is {given.names[0]!r}, ..., "
        f"{folders[-1]} is {given.names[-1]!r}"
    )
    return given.names


def _counts(folders: Sequence[str], given: NameList, source: str) -> str:
    plain = {_plain(name) for name in given.names}
    folder_names = {_plain(folder) for folder in folders}
    without = [folder for folder in folders if _plain(folder) not in plain]
    unused = [name for name in given.names if _plain(name) not in folder_names]
    detail = ""
    if len(without) < len(folders):  # they speak of the same things
        detail = f" (without a name: {_some(without)}; without a class: {_some(unused)})"
    return (
        f"{given.where}: {len(given.names)} class names for the {len(folders)} class folders of {source}{detail}; give one per "
        "folder, in the folders' sorted order, or FOLDER<tab>NAME per line."
    )


def say_equal_names(names: Sequence[str], folders: Sequence[str] | None = None, source: str = "") -> None:
    """Warn of classes of one name, whose images no text can separate; without a source only of names that nobody warned of."""
    first: dict[str, int] = {}
    pairs = [
        (first[plain], number)
        for number, plain in enumerate(map(_plain, names))
        if first.setdefault(plain, number) != number
    ]
    if not pairs or (not source and tuple(names) in _said):
        return
    _said.add(tuple(names))
    other, number = pairs[0]
    where = f"{folders[other]} and {folders[number]}" if folders else f"classes {other} and {number}"
    more = f", as have {len(pairs) - 1} more" if len(pairs) > 1 else ""
    title = f"{source}: " if source else ""
    log.warn(f"{title}{where} have the same name, {names[number]!r}{more}: their images cannot be separated by it")


def _read(labels: StrPath | Sequence[str]) -> NameList:
    if isinstance(labels, str) and labels in class_sets():
        listed = class_set(labels)
        return NameList(labels, tuple(listed.values()), tuple(listed))
    if not isinstance(labels, str | os.PathLike):
        return NameList("labels", tuple(texts_of(labels)))
    labels = os.fspath(labels)
    if labels.lower().endswith(".json"):
        return _of_json(labels)
    lines = lines_of(Path(labels))
    pairs = [line.partition("\t") for line in lines]
    if lines and all(tab for _, tab, _ in pairs):
        names, ids = ([pair[number].strip() for pair in pairs] for number in (2, 0))
        return NameList(labels, tuple(names), tuple(ids))
    wordnet = [line.partition(" ") for line in lines]
    if lines and all(_is_wordnet(item) and name for item, _, name in wordnet):  # synset_words.txt
        first = tuple(name.partition(",")[0].strip() for _, _, name in wordnet)
        return NameList(labels, first, tuple(item for item, _, _ in wordnet))
    return NameList(labels, tuple(lines))


def _is_wordnet(text: str) -> bool:
    return len(text) == 9 and text[0] == "n" and text[1:].isdecimal()


def _of_json(path: str) -> NameList:
    """A list of names, {"folder": "name"}, or ImageNet's {"0": ["n01440764", "tench"]}. Raises ConfigError."""
    try:
        value: Any = json.loads("\n".join(lines_of(Path(path))))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}).") from error
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return NameList(path, tuple(value))
    if isinstance(value, Mapping) and all(isinstance(item, str) for item in value.values()):
        return NameList(path, tuple(value.values()), tuple(value))
    if isinstance(value, Mapping) and all(isinstance(item, list) and len(item) == 2 for item in value.values()):
        ordered = [value[key] for key in sorted(value, key=lambda key: (len(key), key))]
        return NameList(path, tuple(str(name) for _, name in ordered), tuple(str(item) for item, _ in ordered))
    raise ConfigError(f'{path}: expected a list of names, or an object {{"folder": "name"}}.')


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").lower().split())


def _some(items: Sequence[str]) -> str:
    shown = ", ".join(map(repr, items[:SHOWN]))
    return shown + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "") if items else "none"
