"""Options of data files that none of the sources of a run can use: an error, since nothing is accepted and ignored.

One set of options serves all sources of a run, so a folder beside a CSV may leave the CSV's options alone. Opens nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from diptych.data._base import SOURCES, Source, SourceOptions
from diptych.errors import ConfigError

COMMON = ("dataset_type",)  # what choosing the format itself uses


class Opened(NamedTuple):
    """A source, or what stands for one, the options that it was opened with, and the flag that gave its ``image_root``."""

    source: Source | Any
    options: SourceOptions
    root_flag: str = "--image-root"


def check_options(sources: Iterable[Opened]) -> None:
    """Raise ConfigError for an option that was given and that none of the sources can use."""
    given: dict[tuple[str, Any], list[Opened]] = {}
    for opened in sources:
        for field in dataclasses.fields(SourceOptions):
            value = getattr(opened.options, field.name)
            if field.name not in COMMON and value != field.default:
                given.setdefault((field.name, value), []).append(opened)
    for (name, value), group in given.items():
        uses = [_uses(part) for opened in group for part in _parts(opened.source)]
        if any(used is None or name in used for used in uses):
            continue
        flag = group[0].root_flag if name == "image_root" else "--" + name.replace("_", "-")
        formats = ", ".join(known for known in SOURCES.names() if name in (_uses(SOURCES.get(known)) or ()))
        names = " and ".join(dict.fromkeys(opened.source.name for opened in group))
        raise ConfigError(
            f"{flag} {value}: of no use for {names}, only for data of the format {formats}; leave it out."
        )


def check_roots(data: Any) -> None:
    """Raise ConfigError for a folder of images without the data whose images it holds; ``data`` has both as attributes."""
    for root, owner in (("val_image_root", "val_data"), ("imagenet_image_root", "imagenet_val")):
        if getattr(data, root) and not getattr(data, owner):
            flags = [f"--{name.replace('_', '-')}" for name in (root, owner)]
            raise ConfigError(f"{flags[0]} {getattr(data, root)}: holds the images of {flags[1]}; give that too.")


def _parts(source: Any) -> Sequence[Any]:
    """The sources that one is joined of, or stands for."""
    inner = getattr(source, "sources", None) or [getattr(source, "source", None)]
    return [leaf for part in inner for leaf in _parts(part)] if inner != [None] else [source]


def _uses(source: Any) -> frozenset[str] | None:
    """The options that a format declares; None for one that declares nothing, which may use any."""
    uses: frozenset[str] | None = getattr(source, "uses", None)
    return uses
