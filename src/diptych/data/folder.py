"""A folder: pictures with texts of the same name beside them, class folders, or what else lies in it.

    DIR/dog1.jpg + DIR/dog1.txt                 captions, one a line (also .caption, .json; see ``_beside``)
    DIR/dog/1.jpg, DIR/cat/7.png, ...           labels: the index of the folder among the classes (see ``_folder_walk``)
    DIR/metadata.jsonl, DIR/00000.tar, DIR/train/, ...     read as that list, as shards, as splits (see ``_folder_layout``)

Reads folders at any depth. A folder with texts is read as captioned; pictures without one are then left out, and counted.
``--dataset-type folder`` takes the pictures, whatever else lies there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from diptych import log
from diptych.data._base import SOURCES, LeftOut, Source, SourceOptions
from diptych.data._beside import described, inspect_texts, numbered
from diptych.data._folder_layout import (
    INNER,
    Entries,
    Layout,
    class_names,
    entries,
    layout_of,
    lists_in,
    shown,
    split_name,
)
from diptych.data._folder_lists import name_of, open_list, open_shards
from diptych.data._folder_splits import FolderSplits
from diptych.data._folder_walk import (
    HEIC,
    UNREADABLE,
    NoClassesError,
    Walk,
    classes_of,
    ignored,
    or_lists,
    sorted_classes,
    walk,
)
from diptych.data._missing import missing
from diptych.errors import RecordError, SourceError
from diptych.image import image_endings
from diptych.types import Record

INSPECTED = 8  # pictures whose texts are read while opening
WANTED = "a text of the same name (.txt, .caption, .json)"


@SOURCES.register("folder")
class Folder:
    """A folder of pictures as a source; ``open`` reads whatever a folder holds."""

    priority: ClassVar[int] = 10
    example: ClassVar[str] = "a folder"
    uses: ClassVar[frozenset[str]] = frozenset(
        (
            "csv_img_key",
            "csv_caption_key",
            "class_level",
        )
    )

    def __init__(self, spec: str, options: SourceOptions, inside: Entries | None = None) -> None:
        self.root, self.name = Path(spec), name_of(Path(spec))
        self._caption_key = options.csv_caption_key
        listing = walk(self.root, inside)
        if not listing.images and not any(ending in listing.others for ending in (*HEIC, *UNREADABLE)):
            held = shown([*listing.each_text(), *(path for paths in listing.others.values() for path in paths)])
            raise SourceError(f"{spec}: no image in this folder{f'; it holds {held}' if held else ' (it is empty)'}.")
        self.classes: tuple[str, ...] | None = None
        self._texts: dict[str, str] = {}
        self._number: dict[str, int] = {}
        self._level = 0
        self._images = listing.images
        unreadable = _unreadable(listing)
        if not self._images:
            raise SourceError(
                f"{spec}: no picture that can be read here: {unreadable[0].count} {unreadable[0].reason}."
            )
        captioned, stems = _captioned(listing)
        if captioned and self._say_texts(spec, captioned, listing):
            self.left_out = (*self._choose_captioned(captioned, stems, listing, options), *unreadable)
        else:
            self.left_out = (*self._choose_classes(spec, listing, options.class_level), *unreadable)

    @classmethod
    def matches(cls, spec: str) -> bool:
        """A folder that exists."""
        return os.path.isdir(spec)

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> Source:
        """Read what lies in the folder. Raises SourceError for what could be read in two ways, and a split that is not there."""
        root = Path(spec)
        if not os.path.isdir(spec):
            raise missing(spec, "no such folder")
        inside = entries(root)
        layout = Layout() if options.dataset_type == "folder" else layout_of(root, inside)
        if layout.splits:
            return _open_splits(root, layout.splits, split, options)
        if layout.inner:
            log.info(f"{spec}: reading the folder {INNER} in it")
            return cls.open(str(root / INNER), split, options)
        source: Source
        if layout.list_name:
            source = open_list(root, layout.list_name, split, options)
        elif layout.shards:
            return open_shards(root, layout, split, options)
        elif split:
            raise SourceError(f"{spec}: this folder has no splits; name the folder of {split!r} instead.")
        else:
            source = cls._open_images(spec, options, inside)
        return source

    @classmethod
    def _open_images(cls, spec: str, options: SourceOptions, inside: Entries) -> Source:
        """The pictures; where they say nothing by themselves, the only list beside them."""
        try:
            return cls(spec, options, inside)
        except NoClassesError:
            lists = lists_in(Path(spec))
            if len(lists) != 1 or options.dataset_type == "folder":
                raise
            return open_list(Path(spec), lists[0], "", options)

    def __len__(self) -> int:
        return len(self._images)

    def splits(self) -> dict[str, int]:
        """None: folders are split by their names."""
        return {}

    def renumber(self, classes: tuple[str, ...]) -> None:
        """Number the labels among these classes, of which its own are some."""
        if self.classes and self._level == 1:
            self.classes = classes
            self._number = {name: number for number, name in enumerate(classes)}

    def record(self, index: int) -> Record:
        """One picture, with its captions or its label. Raises RecordError when the text cannot be read, or is none."""
        key = self._images[index]
        if self.classes:
            return Record(
                key, self.root / key, label=self._number["/".join(key.split("/", self._level)[: self._level])]
            )
        captions, label, metadata = described(self._read(key.rpartition(".")[0]), key, self._caption_key)
        return Record(key, self.root / key, captions, numbered(label, None, key), extra=metadata)

    def _read(self, stem: str) -> dict[str, bytes]:
        texts = {}
        for ending in self._texts[stem].split("/"):
            if ending.lower() in texts:
                raise RecordError(stem, f"has two texts whose names differ in capitals only (.{ending})", "remove one")
            try:
                texts[ending.lower()] = Path(f"{self.root}/{stem}.{ending}").read_bytes()
            except OSError as error:
                raise RecordError(stem, f"its text {stem}.{ending} cannot be read: {error.strerror}") from error
        return texts

    def _say_texts(self, spec: str, captioned: list[str], listing: Walk) -> bool:
        """Say what the texts of a few pictures show; whether they hold captions or labels, not only data about pictures."""
        self._texts = listing.texts
        stems = [captioned[int(index)].rpartition(".")[0] for index in np.linspace(0, len(captioned) - 1, INSPECTED)]
        samples = [(stem, self._read(stem)) for stem in dict.fromkeys(stems)]
        only_data = all(set(texts) == {"json"} and not _is_described(stem, texts) for stem, texts in samples)
        if only_data and all("/" in path for path in captioned):
            return False
        if inspect_texts(samples, spec, self._caption_key):
            raise SourceError(f"{spec}: labels beside pictures are names; write numbers, or use class folders.")
        return True

    def _choose_captioned(
        self, captioned: list[str], stems: set[str], listing: Walk, options: SourceOptions
    ) -> list[LeftOut]:
        """Take the pictures that have a text of their own, and say what else is there."""
        wanted = "." + options.csv_img_key.lower().lstrip(".")
        asked = [path for path in captioned if path.lower().endswith(wanted)] if wanted in image_endings() else []
        chosen = asked or captioned
        unasked = sorted(set(captioned).difference(asked)) if asked else []
        if options.csv_img_key and not asked:
            log.info(
                f"{self.root}: --csv-img-key {options.csv_img_key} is no ending of its pictures; any picture is taken"
            )
        several, bare, lonely = [], [], []
        if len(stems) < len(captioned):
            count = Counter(path.rpartition(".")[0] for path in chosen)
            several = [path for path in chosen if count[path.rpartition(".")[0]] > 1]
            chosen = [path for path in chosen if count[path.rpartition(".")[0]] == 1]
        self._images = chosen
        if len(captioned) < len(listing.images):
            bare = [path for path in listing.images if path.rpartition(".")[0] not in listing.texts]
        if len(listing.texts) > len(stems):
            lonely = [text for text in listing.each_text() if text.rpartition(".")[0] not in stems]
        if text := ignored(listing):
            log.info(f"{self.root}: {len(self._images):,} pictures with texts of the same name{text}")
        reasons = {
            f"pictures without {WANTED}": bare,
            "pictures that share one text (--csv-img-key jpg chooses by the ending)": several,
            "texts without a picture of a known ending": lonely,
        }
        left_out = [LeftOut(len(paths), reason, min(paths)) for reason, paths in reasons.items() if paths]
        if unasked:
            left_out.append(
                LeftOut(len(unasked), "pictures that --csv-img-key does not ask for", unasked[0], bad=False)
            )
        return left_out

    def _choose_classes(self, spec: str, listing: Walk, level: int) -> list[LeftOut]:
        classes = classes_of(spec, listing, level)
        self._level = classes.level
        self._number = {name: number for number, name in enumerate(classes.names)}
        short = {name: name.rpartition("/")[2] for name in classes.names}
        self.classes = tuple(short.values()) if len(set(short.values())) == len(short) else classes.names
        outside = []
        if listing.images_above(classes.level):
            outside = [path for path in self._images if path.count("/") < classes.level]
            self._images = [path for path in self._images if path.count("/") >= classes.level]
        for name in listing.each_text():
            listing.others.setdefault(name.rpartition(".")[2].lower(), []).append(name)
        remarks = "".join(f"; {remark}" for remark in classes.remarks)
        names = shown(self.classes, 3)
        line = f"{spec}: {len(self.classes)} classes from folder names ({names}){ignored(listing)}{remarks}"
        (log.warn if len(self.classes) == 1 else log.info)(line)
        return [LeftOut(len(outside), "pictures outside of the class folders", outside[0])] if outside else []


def _captioned(listing: Walk) -> tuple[list[str], set[str]]:
    """The images that have a text of the same name, and these names."""
    if not listing.texts:
        return [], set()
    stems = {path.rpartition(".")[0] for path in listing.images}
    if stems <= listing.texts.keys():
        return listing.images, stems
    captioned = [path for path in listing.images if path.rpartition(".")[0] in listing.texts]
    return captioned, stems & listing.texts.keys()


def _is_described(stem: str, texts: Mapping[str, bytes]) -> bool:
    """Whether the texts hold a caption or label."""
    try:
        beside = described(texts, stem)
    except RecordError:
        return True
    return bool(beside.captions) or beside.label is not None


def _unreadable(listing: Walk) -> list[LeftOut]:
    """Pictures of endings that nothing installed here decodes."""
    heic = [path for ending in HEIC for path in listing.others.get(ending, [])]
    others = [path for ending in UNREADABLE for path in listing.others.get(ending, [])]
    reasons = {
        "HEIC pictures, which need: pip install pillow-heif": heic,
        "pictures of an ending that is not read": others,
    }
    return [LeftOut(len(paths), reason, min(paths)) for reason, paths in reasons.items() if paths]


def _open_splits(root: Path, folders: Mapping[str, str], split: str, options: SourceOptions) -> Source:
    """All folders of splits, or one of them. Class folders are numbered over those of all splits."""
    chosen = split if split in folders else split_name(split)
    if split and chosen not in folders:
        raise SourceError(f"{root}: no split {split!r}; splits seen: {', '.join(folders)}.")
    parts: dict[str, Source] = {}
    errors: dict[str, SourceError] = {}
    for name in [chosen] if split else folders:
        try:
            parts[name] = Folder.open(str(root / folders[name]), "", options)
        except SourceError as error:
            errors[name] = error
    if not parts:
        problem = next(iter(errors.values()))
        raise SourceError(f"{str(problem).rstrip('.')}{or_lists(root)}.") from problem
    for problem in errors.values():
        log.warn(f"left out: {problem.line}")
    for name, part in parts.items():
        part.name = name_of(root)
        if isinstance(part, Folder) and part.classes:
            _number_over_splits(part, name, root, folders)
    return parts[chosen] if split else FolderSplits(name_of(root), parts, list(errors))


def _number_over_splits(part: Folder, name: str, root: Path, folders: Mapping[str, str]) -> None:
    """Give a class its number where this split has no folder for it and another has."""
    own = set(part.classes or ())
    others: set[str] = set().union(*(class_names(root / folder) for split, folder in folders.items() if split != name))
    if own & others and others - own:
        log.warn(
            f"{root}: {name} has no folder for {shown(sorted(others - own))}, which other splits have; they stay classes"
        )
        part.renumber(sorted_classes(own | others))
