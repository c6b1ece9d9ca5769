"""Where each row of a text file begins: built once, stored in the cache folder, mapped ever after.

An index is a file: int64 [rows, 2] (offset and size in bytes, the line break left out), uint16 [rows] (which split) or nothing,
and a footer of JSON. It is valid for one size and time of the text file. Building streams, so a file of any length costs a
few megabytes of memory; opening again maps, so it costs none. Knows lines, not what is written on them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from diptych import log
from diptych.data._index import CHUNK
from diptych.errors import OutputError, SourceError
from diptych.files import cache_folder, replacing

VERSION = 2
REPORT_ABOVE = 1 << 28  # bytes; indexing a larger file is worth a message


class Rows:
    """The rows of a text file. Copied to another process, it maps the same index there."""

    def __init__(self, index: Path) -> None:
        self.index = index
        self._load()

    def _load(self) -> None:
        size = self.index.stat().st_size
        with self.index.open("rb") as file:
            file.seek(size - 8)
            length = int.from_bytes(file.read(8), "little")
            file.seek(size - 8 - length)
            self.metadata: dict[str, Any] = json.loads(file.read(length))
        count = int(self.metadata["rows"])
        self.names: tuple[str, ...] = tuple(self.metadata["splits"])
        empty = np.zeros((0, 2), dtype=np.int64)
        self.bounds = _mapped(self.index, np.int64, 0, (count, 2)) if count else empty
        self.codes = _mapped(self.index, np.uint16, count * 16, (count,)) if count and self.names else None

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.index = state["index"]
        self._load()

    def __len__(self) -> int:
        return len(self.bounds)

    def splits(self) -> dict[str, int]:
        """Sizes of the named splits; rows without one are not counted."""
        if self.codes is None:
            return {}
        counts = np.bincount(self.codes, minlength=len(self.names))
        return {name: int(count) for name, count in sorted(zip(self.names, counts, strict=True)) if name}

    def of_split(self, split: str, where: str) -> np.ndarray:
        """The rows of one split. Raises SourceError, listing the known splits."""
        sizes = self.splits()
        if split not in sizes:
            seen = ", ".join(f"{name} ({count})" for name, count in sizes.items()) or "none"
            raise SourceError(f"{where}: no split {split!r}; splits seen: {seen}.")
        assert self.codes is not None
        return np.flatnonzero(self.codes == self.names.index(split))


def _mapped(path: Path, kind: type, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """A part of a file as an array. Read in a shuffled order, so the system is asked not to read ahead."""
    mapped = np.memmap(path, kind, "r", offset, shape)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # advice; not every system takes it
        mapped._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
    return mapped


class Built:
    """What a builder hands over: ``append`` takes int64 [k, 2] bounds (and codes, when there are splits), in order."""

    def __init__(self, bounds: BinaryIO, codes: BinaryIO) -> None:
        self._bounds, self._codes = bounds, codes
        self.rows = 0
        self.names: list[str] = [""]
        self._codes_of = {"": 0}
        self.metadata: dict[str, Any] = {}

    def append(self, bounds: np.ndarray, codes: np.ndarray | None = None) -> None:
        """Append rows."""
        self._bounds.write(np.ascontiguousarray(bounds, dtype=np.int64).tobytes())
        given = np.zeros(len(bounds)) if codes is None else codes
        self._codes.write(given.astype(np.uint16).tobytes())
        self.rows += len(bounds)

    def code(self, name: str) -> int:
        """The number of a split's name, new ones added."""
        if name not in self._codes_of:
            if len(self.names) > 65_000:
                raise SourceError(
                    f"more than 65,000 different splits, the last one {name[:80]!r}: is that column a split?"
                )
            self._codes_of[name] = len(self.names)
            self.names.append(name)
        return self._codes_of[name]


def rows_of(path: Path, kind: str, build: Callable[[Path, Built], None]) -> Rows:
    """The index of a text file, built by ``build`` when the cache has none for its size and time. Raises SourceError."""
    state = path.stat()
    mark = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {kind} {VERSION}"
    digest = hashlib.blake2b(mark.encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()
    index = cache_folder() / "index" / f"{path.name[:60]}-{digest}.rows"
    if index.is_file():
        with contextlib.suppress(ValueError, KeyError, OSError):  # a damaged index is built again
            return Rows(index)
    if state.st_size > REPORT_ABOVE:
        log.info(f"indexing {path} once ({state.st_size / 1e9:.1f} GB); the next opening is immediate")
    try:
        _write(path, index, build)
    except OutputError as error:
        raise SourceError(
            f"{path}: no room for its index: {error.line} Set DIPTYCH_CACHE to another folder."
        ) from error
    return Rows(index)


def _write(path: Path, index: Path, build: Callable[[Path, Built], None]) -> None:
    # Several processes may build at once: each beside the others, the last rename wins, all are equal.
    beside_codes = index.with_name(f".{index.name}.{os.getpid()}.codes")
    index.parent.mkdir(parents=True, exist_ok=True)
    with replacing(index, "index") as beside:
        try:
            with beside.open("wb") as file, beside_codes.open("w+b") as codes:
                built = Built(file, codes)
                build(path, built)
                if len(built.names) > 1:
                    codes.seek(0)
                    while piece := codes.read(CHUNK):
                        file.write(piece)
                footer = {**built.metadata, "rows": built.rows, "splits": built.names if len(built.names) > 1 else []}
                text = json.dumps(footer).encode()
                file.write(text + len(text).to_bytes(8, "little"))
        finally:
            beside_codes.unlink(missing_ok=True)


def check_encoding(path: Path, start: bytes) -> None:
    """Raise SourceError for text that begins as UTF-16 or UTF-32, naming what converts it: lines are those of bytes."""
    zeros, size = start[:400].count(b"\0"), len(start[:400])
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or zeros > size // 3:
        encoding = "UTF-32" if zeros > 5 * size // 8 else "UTF-16"
        raise SourceError(f"{path}: not UTF-8 text but {encoding}; convert it: {conversion(path, encoding)}.")


def conversion(path: Path, encoding: str) -> str:
    """The command that makes UTF-8 of a file."""
    return f"iconv -f {encoding} -t UTF-8 {path.name} > utf8-{path.name}"


def line_bounds(path: Path) -> Iterator[tuple[np.ndarray, bytes, int]]:
    """Lines of a file, some at a time: bounds int64 [k, 2] (blank lines too), the bytes they lie in, and those bytes' offset."""
    rest, base = b"", 0  # an unfinished line, and where it begins
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            text = rest + chunk
            breaks = np.flatnonzero(np.frombuffer(text, dtype=np.uint8) == ord("\n"))
            if not len(breaks):
                rest = text
                continue
            starts = np.concatenate([[0], breaks[:-1] + 1])
            yield np.stack([starts + base, breaks - starts], axis=1), text[: breaks[-1] + 1], base
            rest, base = text[breaks[-1] + 1 :], base + int(breaks[-1]) + 1
    if rest:
        yield np.array([[base, len(rest)]], dtype=np.int64), rest, base


def not_blank(bounds: np.ndarray) -> np.ndarray:
    """Which lines hold something: a line of one byte is no record, but blank or the CR of a blank line."""
    return bounds[:, 1] > 1


def line_number(path: Path, offset: int) -> int:
    """The number of the line that begins at ``offset``, from 1, for messages."""
    total = 1
    with path.open("rb") as file:
        while offset > 0 and (chunk := file.read(min(CHUNK, offset))):
            total += chunk.count(b"\n")
            offset -= len(chunk)
    return total


def selected_rows(rows: Rows, split: str, where: str) -> np.ndarray | range:
    """The rows to use: all, without an array of their numbers, or those of a split."""
    return rows.of_split(split, where) if split else range(len(rows))
