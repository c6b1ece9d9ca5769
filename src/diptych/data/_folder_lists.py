"""Opening the list or the shards that lie in a folder, by the format that reads them. ``_folder_layout`` says which."""

from __future__ import annotations

import dataclasses
import glob
from pathlib import Path
from typing import Any

from diptych import log
from diptych.data._base import SOURCES, Source, SourceOptions
from diptych.data._folder_layout import Layout
from diptych.data._folder_splits import FolderSplits
from diptych.errors import SourceError
from diptych.registry import Registry


def name_of(root: Path) -> str:
    """How a folder is called as a data set; "images" alone names nothing: the folder around it is the data set."""
    name = root.resolve().name
    return f"{root.resolve().parent.name}/{name}" if name == "images" else name or str(root)


def open_list(root: Path, name: str, split: str, options: SourceOptions) -> Source:
    """The list in a folder; its pictures may lie in a folder beside it."""
    formats: Registry[Any] = SOURCES  # by their registered names: entries do not import each other
    path = root / name
    entry = formats.get(_list_format(path))
    log.info(f"{root}: reading the list {name} in it")
    source: Source = entry.open(str(path), split, options)
    image = source.record(0).image if len(source) else b""
    if isinstance(image, Path) and not image.exists() and not options.image_root and image.is_relative_to(root):
        beside = [folder for folder in sorted(root.iterdir()) if (folder / image.relative_to(root)).is_file()]
        if len(beside) == 1:
            log.info(f"{root}: its pictures lie in {beside[0].name}")
            source = entry.open(str(path), split, dataclasses.replace(options, image_root=str(beside[0])))
    source.name = name_of(root)
    return source


def _list_format(path: Path) -> str:
    """The registered name of the format of a list; of a .txt by its first line."""
    ending = path.suffix.lower().lstrip(".")
    if ending == "txt":
        with path.open("rb") as file:
            ending = "token" if b"#0\t" in file.readline(1 << 12) else "csv"
    return {"tsv": "csv", "token": "flickr_token"}.get(ending, ending)


def open_shards(root: Path, layout: Layout, split: str, options: SourceOptions) -> Source:
    """All shards of a folder, or those of one split."""
    shards = layout.shards or {}
    if split and split not in shards:
        names = ", ".join(name for name in shards if name) or "none"
        raise SourceError(f"{root}: no split {split!r} among its shards; splits seen: {names}.")
    formats: Registry[Any] = SOURCES
    parts: dict[str, Source] = {}
    for name in [split] if split else shards:
        files = [str(root / file) for file in shards[name]]
        log.info(
            f"{root}: reading the {len(files)} shards in it{f' of the split {name}' if name else ''} ({shards[name][0]}, ...)"
        )
        if layout.are_tars:
            parts[name] = formats.get("webdataset")(str(root), "", options, files=files)
        else:
            parts[name] = formats.get("parquet").open(_pattern(root, files, name), "", options)
        parts[name].name = name_of(root)
    return parts[split] if split in parts else FolderSplits(name_of(root), parts)


def _pattern(root: Path, files: list[str], split: str) -> str:
    """What names these Parquet files only, in a folder where the names of other splits begin otherwise."""
    if len(files) == 1:
        return files[0]
    start = Path(files[0]).name[: len(split)] if split else ""
    return f"{glob.escape(str(root))}/{glob.escape(start)}*.parquet"
