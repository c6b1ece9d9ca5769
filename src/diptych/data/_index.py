"""Reading parts of files from any process: positions are numbers, handles are opened where they are used.

A source is copied to loader processes; an open file must not be. Reading at an offset moves no shared cursor.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import zlib
from pathlib import Path

from diptych.data._missing import missing
from diptych.data._remote import fetched, is_remote, read_range
from diptych.errors import SourceError
from diptych.files import cache_folder, replacing

CHUNK = 1 << 24


class Reader:
    """Reads ``size`` bytes at ``offset`` of a file, local or remote, in any process."""

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self._handle: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_handle": None}

    def read(self, offset: int, size: int) -> bytes:
        """Raises SourceError when the file has gone or shrunk since it was opened."""
        if isinstance(self.path, str):
            return read_range(self.path, offset, size)
        if self._handle is None or self._handle[0] != os.getpid():
            try:
                self._handle = (os.getpid(), os.open(self.path, os.O_RDONLY))
            except OSError as error:
                raise SourceError(f"{self.path}: cannot be read any more: {error.strerror}.") from error
        data = os.pread(self._handle[1], size, offset)
        while len(data) < size:
            more = os.pread(self._handle[1], size - len(data), offset + len(data))
            if not more:
                raise SourceError(f"{self.path}: has shrunk since it was opened; was it replaced while it was read?")
            data += more
        return data


def checked_file(spec: str) -> Path:
    """The path of a file that exists and is not empty; a remote one is fetched into the cache. Raises SourceError."""
    path = fetched(spec, cache_folder() / "remote") if is_remote(spec) else Path(spec)
    try:
        exists = path.is_file()
    except (OSError, ValueError):  # no file can have such a name
        exists = False
    if not exists:
        raise missing(spec)
    if path.stat().st_size == 0:
        raise SourceError(f"{spec}: the file is empty (0 bytes).")
    return path


def unpacked(path: Path) -> Path:
    """The file itself, or for a gzipped one its unpacked copy in the cache, made once for each state of the file."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            if path.name.lower().endswith((".gz", ".tgz")):
                raise SourceError(f"{path}: not a whole gzip file (it does not begin as one).")
            return path
    state = path.stat()
    mark = hashlib.blake2b(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode(), digest_size=8).hexdigest()
    plain = path.name.removesuffix(".gz").replace(".tgz", ".tar")
    stem, dot, ending = plain.partition(".")
    copy = cache_folder() / "unpacked" / f"{stem}-{mark}{dot}{ending}"
    if copy.exists():
        return copy
    with replacing(copy, "unpacked shard") as beside, gzip.open(path) as source, beside.open("wb") as target:
        try:
            shutil.copyfileobj(source, target, CHUNK)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(f"{path}: not a whole gzip file ({error}).") from error
    return copy
