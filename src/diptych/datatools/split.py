"""Splits as files: which records train, which test, written as the CSVs that open_clip's fine-tuning scripts read.

Two rules of the field for Flickr30k, and a general rule: the source-000 rule takes the last 1,000 rows of the token file
(rows are captions, so that is 200 photos, whose other rows may train); Karpathy's takes his list of photos; "random" draws
images, never rows, so that no image is on both sides.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from diptych.data import Source, draw, image_id
from diptych.errors import ConfigError, SourceError
from diptych.files import write_text
from diptych.types import Record

Number = TypeVar("Number", int, float)
HEADER = ("img_key", "caption_key")
LAST = 1000


def split(source: Source, rule: str, seed: int = 0) -> dict[str, list[tuple[str, str]]]:
    """Rows (image path, caption) of each part, in the source's order. Raises ConfigError for an unknown rule.

    ``rule``: "last" or "last:N" (rows), "karpathy:FILE.json", "random:SHARE" (of the images, for the test part).
    """
    name, _, given = rule.partition(":")
    if name == "last":
        return _last(source, _number(rule, given or str(LAST), int))
    if name == "karpathy":
        return _karpathy(source, given)
    if name == "random":
        return _random(source, _number(rule, given or "0.1", float), seed)
    raise ConfigError(f"--rule {rule!r}: expected last:N, karpathy:FILE.json or random:SHARE.")


def _number(rule: str, text: str, number: type[Number]) -> Number:
    try:
        return number(text)
    except ValueError as error:
        raise ConfigError(f"--rule {rule!r}: {text!r} is not a number.") from error


def _rows(source: Source) -> Iterator[tuple[Record, str, str]]:
    """(record, image path, caption) of every caption."""
    for index in range(len(source)):
        record = source.record(index)
        if isinstance(record.image, bytes):
            raise SourceError(
                f"{source.name}: its images are stored in the file itself, so a CSV cannot name them; choose shards instead."
            )
        for caption in record.captions:
            yield record, str(Path(record.image).resolve()), caption


def _last(source: Source, count: int) -> dict[str, list[tuple[str, str]]]:
    rows = [(image, caption) for _, image, caption in _rows(source)]
    if not 0 < count < len(rows):
        raise ConfigError(f"--rule last:{count}: there are {len(rows)} rows.")
    return {"train": rows[:-count], "test": rows[-count:]}


def _karpathy(source: Source, path: str) -> dict[str, list[tuple[str, str]]]:
    try:
        listed = json.loads(Path(path).read_text(encoding="utf-8"))["images"]
        of_name = {item["filename"]: {"restval": "train"}.get(item["split"], item["split"]) for item in listed}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--rule karpathy:{path}: not Karpathy's list ({type(error).__name__}: {error}).") from error
    parts: dict[str, list[tuple[str, str]]] = {}
    unknown = 0
    for _, image, caption in _rows(source):
        part = of_name.get(Path(image).name)
        if part is None:
            unknown += 1
            continue
        parts.setdefault(part, []).append((image, caption))
    if not parts:
        raise SourceError(f"{source.name}: none of its images is in {path}.")
    return parts


def _random(source: Source, share: float, seed: int) -> dict[str, list[tuple[str, str]]]:
    if not 0 < share < 1:
        raise ConfigError(f"--rule random:{share}: expected a share between 0 and 1.")
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for record, image, caption in _rows(source):
        # By the image's name, so that a image always falls on the same side, whatever else is in the file.
        chance = draw(seed, image_id(record)) / 2**63
        parts["test" if chance < share else "train"].append((image, caption))
    return parts


def write_splits(parts: dict[str, list[tuple[str, str]]], folder: Path, stem: str) -> list[Path]:
    """``STEM_PART.csv`` of each part: img_key, caption_key, commas, absolute paths. Raises OutputError."""
    written = []
    for part, rows in sorted(parts.items()):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(rows)
        written.append(folder / f"{stem}_{part}.csv")
        write_text(written[-1], text.getvalue(), "split")
    return written
