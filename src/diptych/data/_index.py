"""Reading parts of files from any process: positions are numbers, handles are opened where they are used.

A source is copied to loader processes; an open file must not be. Reading at an offset moves no shared cursor.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from diptych.errors import SourceError

CHUNK = 1 << 24


class Reader:
    """Reads ``size`` bytes at ``offset`` of a file, in whichever process it finds itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "_handle": None}

    def read(self, offset: int, size: int) -> bytes:
        """Raises SourceError when the file has gone or shrunk since it was opened."""
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


def cache_folder() -> Path:
    """Where what can be made again is kept: DIPTYCH_CACHE, else diptych/ in the user's cache folder."""
    named = os.environ.get("DIPTYCH_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"


def checked_file(spec: str) -> Path:
    """The path of a file that exists and is not empty. Raises SourceError."""
    path = Path(spec)
    if not path.is_file():
        raise SourceError(f"{spec}: no such file.")
    if path.stat().st_size == 0:
        raise SourceError(f"{spec}: the file is empty (0 bytes).")
    return path


def line_bounds(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Where each line that is not blank begins, and how many bytes it has without its line break; int64 each."""
    breaks, base = [], 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            breaks.append(np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n")) + base)
            base += len(chunk)
    ends = np.concatenate([*breaks, np.array([base])]).astype(np.int64)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1] + 1])
    sizes = ends - starts
    kept = sizes > 1  # a line of one byte is no record: blank, or the CR of a blank line
    return starts[kept], sizes[kept]
