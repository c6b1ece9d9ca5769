"""What a source holds, in a few bytes: by which a resumed run knows whether its data is still the same.

The number of records, and a hash over some of them, spread evenly: keys, captions, labels and the images' sizes. Not their
paths, which may move, and not their order of reading.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data._base import Source
from diptych.errors import DataError
from diptych.types import Record

READ = 16  # records that are read for it


def fingerprint(source: Source) -> dict[str, Any]:
    """``{"records": N, "digest": hex}`` of a source; equal in every process, and while the data is the same."""
    digest = hashlib.blake2b(digest_size=16)
    for index in spread(len(source), READ):
        digest.update(json.dumps(_described(source, index)).encode())
    return {"records": len(source), "digest": digest.hexdigest()}


def spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, the first and the last among them, evenly spread."""
    return sorted({round(number) for number in np.linspace(0, count - 1, min(count, most)).tolist()}) if count else []


def _described(source: Source, index: int) -> list[Any]:
    try:
        record = source.record(index)
    except DataError:  # a bad record: that it is one must not change
        return [index, "bad"]
    return [index, record.key, list(record.captions), record.label, _size(record)]


def _size(record: Record) -> int:
    """The bytes of the image as it is stored; -1 where there is no such file."""
    if isinstance(record.image, bytes):
        return len(record.image)
    try:
        return Path(record.image).stat().st_size
    except OSError:
        return -1
