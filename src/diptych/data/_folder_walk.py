"""Every picture in a folder, at any depth, with the texts beside it; and which folders are classes. Names only, nothing is read.

The rule of classes: the folders directly inside name them (``--class-level 2`` takes those one deeper), sorted, as numbers where
all are numbers. A folder that is empty is a class too. Where pictures lie deeper only, and in several folders, both levels could
be meant: that is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from diptych.data._beside import TEXTS
from diptych.data._folder_layout import Entries, entries, is_metadata, lists_in, shown, split_name
from diptych.errors import SourceError
from diptych.image import image_endings

GENERIC = frozenset(("images", "image", "imgs", "img", "pictures", "photos", "jpegimages", "data"))
HEIC = ("heic", "heif")
UNREADABLE = ("jxl", "svg", "cr2", "nef", "arw", "dng", "raw", "djvu")
IMAGE, TEXT, OTHER = range(3)


@dataclass
class Walk:
    """Relative paths of ``images``, sorted; ``texts``: endings by the path before them, "txt/json"; ``others`` by ending.

    ``folders``: how many images are directly in each, and whether it holds any other file.
    """

    images: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    others: dict[str, list[str]] = field(default_factory=dict)
    folders: dict[str, tuple[int, bool]] = field(default_factory=dict)

    def each_text(self) -> list[str]:
        """The paths of all texts."""
        return [f"{stem}.{ending}" for stem, endings in self.texts.items() for ending in endings.split("/")]

    def images_above(self, level: int) -> bool:
        """Whether an image lies in fewer folders than ``level``."""
        return any(count and (name.count("/") + 1 if name else 0) < level for name, (count, _) in self.folders.items())


class NoClassesError(SourceError):
    """Pictures without texts, and no folders that could be classes."""


class Classes(NamedTuple):
    """Names of the classes in their order, the level of the folders that name them, and remarks for the log."""

    names: tuple[str, ...]
    level: int
    remarks: list[str]


def walk(root: Path, inside: Entries | None = None) -> Walk:
    """List all files below a folder; hidden ones are passed over, links followed, but not in circles. Raises SourceError.

    ``inside``: what is directly in it, if it has been listed.
    """
    result = Walk()
    waiting = [("", inside or entries(root))]
    while waiting:
        base, items = waiting.pop()
        prefix = base + "/" if base else ""
        before, others = len(result.images), False
        for ending, names in items.files.items():
            kind = _kind(ending)
            if kind == IMAGE:
                result.images += [prefix + name for name in names] if prefix else names
            elif kind == TEXT:
                metadata = [name for name in names if is_metadata(name)] if ending == "json" else []
                if metadata:
                    result.others.setdefault(ending, []).extend(prefix + name for name in metadata)
                _add_texts(result.texts, prefix, sorted(set(names).difference(metadata)) if metadata else names)
                others = True
            else:
                result.others.setdefault(ending, []).extend(prefix + name for name in names)
                others = others or ending not in HEIC
        result.folders[base] = (len(result.images) - before, others)
        inner = (name for name in reversed(items.folders) if not _is_circle(root / base / name))
        waiting += [(prefix + name, entries(root / base / name)) for name in inner]
    result.images.sort()
    return result


@cache
def _kind(ending: str) -> int:
    return IMAGE if "." + ending in image_endings() else TEXT if ending in TEXTS else OTHER


def _add_texts(texts: dict[str, str], prefix: str, names: list[str]) -> None:
    """Add the texts of one ending, in any capitals, of one folder."""
    for name in names:
        stem, _, ending = name.rpartition(".")
        key = prefix + stem
        texts[key] = f"{texts[key]}/{ending}" if key in texts else ending


def _is_circle(folder: Path) -> bool:
    """A link to a folder around it."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def sorted_classes(names: set[str]) -> tuple[str, ...]:
    """In the order of their labels: as numbers where all are numbers."""
    numbers = all(name.isascii() and name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if numbers else (0, name)))


def classes_of(spec: str, listing: Walk, level: int) -> Classes:
    """The class folders of a folder whose pictures have no texts; ``level`` 0 takes the first where that is clear.

    Raises SourceError where there are none, or where several levels could be meant.
    """
    filled = sorted(name for name, (images, _) in listing.folders.items() if images and name)
    tops = sorted({name.partition("/")[0] for name in filled})
    if not tops:
        raise NoClassesError(
            f"{spec}: {len(listing.images)} images, but neither a .txt beside any of them nor class folders around them"
            f"{or_lists(Path(spec))}."
        )
    remarks = [] if level else _clear_level(spec, filled, tops, listing)
    level = level or 1
    names = {"/".join(name.split("/")[:level]) for name in filled if name.count("/") >= level - 1}
    if not names:
        raise SourceError(f"{spec}: no picture lies in a folder of --class-level {level}.")
    empty, others = _without_images(listing, level, names)
    remarks += [f"without a picture: {shown(empty)}"] if empty else []
    remarks += [f"folders that are no class: {shown(others)}"] if others else []
    return Classes(sorted_classes(names | set(empty)), level, remarks)


def _without_images(listing: Walk, level: int, names: set[str]) -> tuple[list[str], list[str]]:
    """Folders of a level that no picture is in: those without any file, and those with other files."""
    of_level = [name for name in listing.folders if name and name.count("/") == level - 1 and name not in names]
    filled = {"/".join(path.split("/")[:level]) for path, (_, other) in listing.folders.items() if other}
    return [name for name in of_level if name not in filled], [name for name in of_level if name in filled]


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _clear_level(spec: str, filled: list[str], tops: list[str], listing: Walk) -> list[str]:
    """Raise SourceError where the first level is not clearly that of classes; remarks where it is, but needs a word."""
    second = sorted({"/".join(name.split("/")[:2]) for name in filled if "/" in name})
    direct = [name for name in filled if "/" not in name]
    if len(tops) == 1 and not _without_images(listing, 1, set(tops))[0]:
        if len(second) > 1 and not direct:
            raise SourceError(
                f"{spec}: {tops[0]!r} would be the only class, but folders lie in it ({shown(second)}): "
                f"give {Path(spec) / tops[0]}, or --class-level 1 or 2."
            )
        if tops[0].lower() in GENERIC or split_name(tops[0]):
            raise NoClassesError(
                f"{spec}: {tops[0]!r} would be the only class; its pictures have neither a .txt beside them nor class "
                f"folders around them{or_lists(Path(spec))}."
            )
        return [f"only one class, {tops[0]!r}, the name of the only folder with pictures"]
    if not direct and any(sum(_inside(name, top) for name in second) > 1 for top in tops):
        raise SourceError(
            f"{spec}: pictures lie two folders deep: --class-level 1 takes {len(tops)} classes ({shown(tops, 3)}), "
            f"--class-level 2 takes {len(second)} ({shown(second, 3)})."
        )
    return ["deeper folders belong to the class around them"] if second else []


def or_lists(root: Path) -> str:
    """What to give instead of a folder that holds lists, for messages."""
    lists = lists_in(root, deeper=True)
    return f"; there are lists: give {' or '.join(str(root / name) for name in lists[:5])}" if lists else ""


def ignored(listing: Walk) -> str:
    """Files that are neither pictures nor texts, by ending: ", 3 files ignored: 2 .xyz (a/x.xyz), 1 .pdf (b.pdf)"."""
    names = {ending: paths for ending, paths in listing.others.items() if ending not in (*HEIC, *UNREADABLE)}
    if not names:
        return ""
    counts = sorted(names.items(), key=lambda item: (-len(item[1]), item[0]))
    kinds = (f"{len(paths)} {'.' + ending if ending else 'without ending'} ({min(paths)})" for ending, paths in counts)
    count = sum(map(len, names.values()))
    return f", {count} file{'s' if count > 1 else ''} ignored: {shown(kinds, 10)}"
