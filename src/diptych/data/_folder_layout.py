"""What lies in a folder: a list of its pictures, shards, a folder for each split, or pictures. Names only; nothing is opened.

The rule, first match first: a list with a known name (``metadata.jsonl``, ``captions.txt``, ...); shards (tars, Parquet files),
whose names may begin with a split; folders named as splits; a lone folder ``data``, by the same rules; else pictures. What could
be read in two ways is an error that names both. Hidden files and folders are passed over everywhere.
"""

from __future__ import annotations

import mmap
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from diptych.errors import SourceError
from diptych.image import image_endings

LIST = re.compile(
    r"metadata\.(jsonl|csv|parquet)|captions?\.(txt|csv|tsv|json|jsonl)|results\.csv|.*\.token", re.IGNORECASE
)
ANY_LIST = ("csv", "tsv", "jsonl", "ndjson", "json", "token", "parquet")
TARS, PARQUET = (".tar", ".tar.gz", ".tgz"), (".parquet",)
SPLIT_NAMES = "train|training|val|validation|valid|dev|test|testing"
SPLIT_FOLDER = re.compile(rf"({SPLIT_NAMES})([-_]?\d{{4}})?", re.IGNORECASE)  # also with a year: val2017
SHARD_SPLIT = re.compile(rf"({SPLIT_NAMES})[-_.\d]", re.IGNORECASE)
USUAL = {"training": "train", "testing": "test"}
METADATA = frozenset(
    f"{name}.json" for name in ("dataset_info", "dataset_infos", "config", "classes", "labels", "class_names")
)
INNER = "data"
PROBED = 16  # class folders that are held against a list
SHOWN = 5


class Entries(NamedTuple):
    """The visible names in a folder: of ``files`` by their ending, lower case without the dot; ``folders``, sorted."""

    files: dict[str, list[str]]
    folders: list[str]

    def ending(self, *endings: str) -> list[str]:
        """The files with these endings, sorted."""
        return sorted(name for ending in endings for name in self.files.get(ending, ()))

    def images(self) -> list[str]:
        """The pictures, by their endings, in no order."""
        return [name for ending, names in self.files.items() if "." + ending in image_endings() for name in names]


class Layout(NamedTuple):
    """How a folder is read; of all fields one is set, or none for pictures.

    ``shards`` by split, all under "" where their names have none; ``splits``: folders by the split that they are named for.
    """

    list_name: str = ""
    shards: dict[str, list[str]] | None = None
    splits: dict[str, str] | None = None
    inner: str = ""

    @property
    def are_tars(self) -> bool:
        """Whether the shards are tars; else they are Parquet."""
        return all(name.lower().endswith(TARS) for names in (self.shards or {}).values() for name in names)


def entries(folder: Path) -> Entries:
    """List a folder. Raises SourceError when the system refuses."""
    files: defaultdict[str, list[str]] = defaultdict(list)
    folders: list[str] = []
    try:
        with os.scandir(folder) as items:
            for item in items:
                name = item.name
                if item.is_dir():
                    folders.append(name)
                else:
                    _, dot, ending = name.rpartition(".")
                    files[ending if dot else ""].append(name)
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed: {error.strerror}.") from error
    lowered: defaultdict[str, list[str]] = defaultdict(list)
    for ending, names in files.items():
        lowered[ending.lower()] += [name for name in names if name[0] != "."]
    folders = sorted(name for name in folders if name[0] != "." and name != "__MACOSX")
    return Entries({ending: names for ending, names in lowered.items() if names}, folders)


def layout_of(root: Path, inside: Entries) -> Layout:
    """How a folder is read, by what is directly in it. Raises SourceError where there are two ways, naming them."""
    images = inside.images()
    listed = _listed(root, inside, images)
    shards = _shards(root, inside, images)
    splits = _splits(root, inside)
    if listed and shards:
        shown = next(iter(shards.values()))[0]
        raise _two_ways(
            root, f"the list {listed} and shards ({shown}, ...)", [f"{root}/{listed}", _pattern(root, shown)]
        )
    if listed:
        _against_folders(root, listed, inside)
        return Layout(list_name=listed)
    if splits and (shards or images or len(splits) < len(inside.folders)):
        _only_splits(root, inside, splits, shards, images)
    if shards:
        return Layout(shards=shards)
    if splits:
        return Layout(splits=splits)
    if not images and INNER in inside.folders and [name for name in inside.folders if _holds(root / name)] == [INNER]:
        return Layout(inner=INNER)
    return Layout()


def split_name(name: str) -> str:
    """The split that a folder or flag names, without its year; empty for any other name."""
    match = SPLIT_FOLDER.fullmatch(name)
    return USUAL.get(match[1].lower(), match[1].lower()) if match else ""


def _splits(root: Path, inside: Entries) -> dict[str, str]:
    """Folders that hold something by the split that they are named for; by the whole name where years differ."""
    names = [name for name in inside.folders if split_name(name) and _holds(root / name)]
    splits = {split_name(name): name for name in names}
    return splits if len(splits) == len(names) else {name.lower(): name for name in names}


def is_metadata(name: str) -> bool:
    """Whether a JSON file is about a data set or a shard (img2dataset's), and neither a list nor about a picture."""
    return name.endswith("_stats.json") or name in METADATA


def lists_in(root: Path, deeper: bool = False) -> list[str]:
    """Files in a folder, or also in folders without pictures in it, that may be lists of pictures."""
    names = [name for name in entries(root).ending(*ANY_LIST) if not is_metadata(name)]
    for folder in entries(root).folders if deeper else ():
        inside = entries(root / folder)
        names += [] if inside.images() else [f"{folder}/{name}" for name in lists_in(root / folder)]
    return names


def class_names(root: Path) -> set[str]:
    """Folders directly in ``root`` that are empty or hold a picture directly."""
    inside = ((name, entries(root / name)) for name in entries(root).folders)
    return {name for name, items in inside if not any(items) or items.images()}


def shown(names: Iterable[str], most: int = SHOWN) -> str:
    """At most ``most`` names, comma separated."""
    every = list(names)
    return ", ".join(every[:most]) + (", ..." if len(every) > most else "")


def _two_ways(root: Path, what: str, ways: list[str]) -> SourceError:
    return SourceError(f"{root}: holds {what}: give {' or '.join(ways)}.")


def _pattern(root: Path, shard: str) -> str:
    ending = next(ending for ending in (*TARS, *PARQUET) if shard.lower().endswith(ending))
    return f"{root}/*{ending}"


def _listed(root: Path, inside: Entries, images: list[str]) -> str:
    """The list of a known name, if there is exactly one."""
    captions = [name for name in inside.files.get("txt", ()) if name.lower() in ("captions.txt", "caption.txt")]
    names = [name for name in (*captions, *inside.ending(*ANY_LIST)) if LIST.fullmatch(name)]
    stems = {name.rpartition(".")[0] for name in images} if names else set()
    names = [name for name in names if name.rpartition(".")[0] not in stems]
    if len(names) > 1:
        raise _two_ways(root, f"several lists ({shown(names)})", [f"{root}/{name}" for name in names[:SHOWN]])
    if names and not stems.isdisjoint(name.rpartition(".")[0] for name in inside.files.get("txt", ())):
        ways = [f"{root}/{names[0]}", "--dataset-type folder for the texts"]
        raise _two_ways(root, f"the list {names[0]} and pictures with a .txt beside them", ways)
    return names[0] if names else ""


def _shards(root: Path, inside: Entries, images: list[str]) -> dict[str, list[str]]:
    """Tars or Parquet files by split. img2dataset's Parquet files beside tars or folders of the same name are only about them."""
    tars = [name for name in inside.ending("tar", "gz", "tgz") if name.lower().endswith(TARS)]
    stems = {name.partition(".")[0] for name in tars} | set(inside.folders)
    tables = [
        name for name in inside.ending("parquet") if name.partition(".")[0] not in stems and not LIST.fullmatch(name)
    ]
    if tars and tables:
        raise _two_ways(root, "tars and Parquet files", [_pattern(root, tars[0]), _pattern(root, tables[0])])
    shards = tars or tables
    if shards and images:
        ways = [_pattern(root, shards[0]), "--dataset-type folder for the pictures"]
        raise _two_ways(root, f"{len(shards)} shards ({shards[0]}) and {len(images)} pictures ({min(images)})", ways)
    if not shards:
        return {}
    matches = [SHARD_SPLIT.match(name) for name in shards]
    by_split: dict[str, list[str]] = {}
    for name, match in zip(shards, matches, strict=True):
        by_split.setdefault(split_name(match[1]) if match and all(matches) else "", []).append(name)
    return by_split


def _only_splits(
    root: Path, inside: Entries, splits: dict[str, str], shards: dict[str, list[str]], images: list[str]
) -> None:
    """Raise SourceError where other data lies beside the folders of splits."""
    others = [name for name in inside.folders if name not in splits.values() and _holds_images(root / name)]
    kinds = [f"folders with pictures ({shown(others)})"] if others else []
    kinds += [f"{len(images)} pictures ({min(images)})"] if images else []
    kinds += [f"shards ({next(iter(shards.values()))[0]})"] if shards else []
    if kinds:
        ways = [
            *(f"{root}/{name}" for name in splits.values()),
            "--dataset-type folder to take every folder for a class",
        ]
        raise _two_ways(root, f"folders named as splits ({shown(splits.values())}) and {' and '.join(kinds)}", ways)


def _against_folders(root: Path, listed: str, inside: Entries) -> None:
    """Raise SourceError where several folders hold pictures that the list does not name."""
    if listed.lower().endswith(PARQUET):
        return
    examples = {name: min(entries(root / name).images(), default="") for name in inside.folders[:PROBED]}
    examples = {name: example for name, example in examples.items() if example}
    if len(examples) < 2 or not (root / listed).stat().st_size:
        return
    with (root / listed).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        absent = [
            name for name, example in examples.items() if text.find(os.fsencode(example)) < 0 and example.isascii()
        ]
    if len(absent) > 1:
        ways = [f"{root}/{listed}", "--dataset-type folder for the class folders"]
        raise _two_ways(
            root, f"the list {listed} and folders with pictures that it does not name ({shown(absent)})", ways
        )


def _holds(folder: Path) -> bool:
    """Whether anything visible is in a folder."""
    try:
        with os.scandir(folder) as items:
            return any(item.name[0] != "." for item in items)
    except OSError:
        return True


def _holds_images(folder: Path) -> bool:
    """A picture or shard in the folder, or a picture in a folder in it."""
    inside = entries(folder)
    if inside.images() or inside.ending("tar", "tgz", "parquet"):
        return True
    return any(entries(folder / name).images() for name in inside.folders)
