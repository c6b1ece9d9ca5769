"""Writing so that nothing is ever lost: write beside, flush to the disk, rename.

A reader sees the old file or the new one, never half of one, whatever happens in between: a full disk, Ctrl-C, a power
cut. This file knows no format; callers write into the path or handle that they are given.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from diptych.errors import OutputError

StrPath = str | os.PathLike[str]
"""What everybody may give as a path."""


@contextlib.contextmanager
def replacing(path: StrPath, what: str = "file") -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; on success it replaces ``path``, on failure it is removed.

    ``what`` names the thing in the message. Raises OutputError when the system refuses to write (a full disk, a
    read-only folder); other exceptions pass through after the clean-up.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        flush_to_disk(beside)
        os.replace(beside, path)
        flush_to_disk(path.parent)
    except OSError as error:
        earlier = " The previous one is whole." if path.exists() else ""
        reason = error.strerror or str(error)
        raise OutputError(
            f"the {what} {path} could not be written: {reason}.{earlier} Free some space or choose another folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def write_text(path: StrPath, text: str, what: str = "file") -> None:
    """Replace the text of ``path`` (UTF-8) in one step. Raises OutputError."""
    with replacing(path, what) as beside:
        beside.write_text(text, encoding="utf-8")


def cache_folder() -> Path:
    """The folder of what can be computed or downloaded again: DIPTYCH_CACHE, else diptych/ in the user's cache folder."""
    named = os.environ.get("DIPTYCH_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diptych"


def flush_to_disk(path: StrPath) -> None:
    """Wait until a file, or the names in a folder, are on the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
