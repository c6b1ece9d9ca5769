"""Remote files: s3://, gs://, http://, hf:// and whatever else fsspec knows, by its own libraries.

Lists (CSV, JSON) are fetched whole into the cache, since they are small beside what they list; tars are read by ranges;
images one by one. Costs nothing where unused: without a remote path fsspec is not even imported.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

from diptych.errors import SourceError
from diptych.files import replacing

CHUNK = 1 << 24
SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")


def is_remote(spec: str) -> bool:
    """Whether a path begins with a scheme such as s3://."""
    return SCHEME.match(spec) is not None


@lru_cache(maxsize=64)
def _filesystem(scheme: str) -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise SourceError(
            f"{scheme}://...: reading it needs the package fsspec: pip install 'diptych[remote]'"
        ) from error
    try:
        return fsspec.filesystem(scheme)
    except ImportError as error:
        raise SourceError(f"{scheme}://...: reading it needs another package: {_line(error)}") from error
    except ValueError as error:
        raise SourceError(f"{scheme}://...: fsspec knows no such scheme ({_line(error)}).") from error


def _parts(url: str) -> tuple[Any, str]:
    return _filesystem(url.partition("://")[0]), url


def _failed(url: str, error: BaseException) -> SourceError:
    return SourceError(f"{url}: cannot be read ({type(error).__name__}: {_line(error)}).")


def read_range(url: str, offset: int, size: int) -> bytes:
    """``size`` bytes at ``offset``. Raises SourceError."""
    files, path = _parts(url)
    try:
        data: bytes = files.cat_file(path, start=offset, end=offset + size)
    # Each scheme's library raises classes of its own.
    except Exception as error:
        raise _failed(url, error) from error
    if len(data) != size:
        raise SourceError(
            f"{url}: {len(data)} bytes came where {size} were asked for; was it replaced while it was read?"
        )
    return data


def read_whole(url: str) -> bytes:
    """All bytes of a small file. Raises SourceError."""
    files, path = _parts(url)
    try:
        data: bytes = files.cat_file(path)
    except Exception as error:
        raise _failed(url, error) from error
    return data


def size_and_mark(url: str) -> tuple[int, str]:
    """The size in bytes, and a mark that changes when the file does, as far as its store reports. Raises SourceError."""
    files, path = _parts(url)
    try:
        metadata = files.info(path)
    except Exception as error:
        raise _failed(url, error) from error
    marks = [
        str(metadata.get(key, "")) for key in ("ETag", "etag", "mtime", "LastModified", "created", "updated", "md5")
    ]
    return int(metadata.get("size") or 0), " ".join(marks)


def fetched(url: str, folder: Path) -> Path:
    """A copy in ``folder``, made once for each state of the file. Raises SourceError, OutputError."""
    size, mark = size_and_mark(url)
    digest = hashlib.blake2b(f"{url} {size} {mark}".encode(), digest_size=8).hexdigest()
    copy = folder / digest / url.rstrip("/").rpartition("/")[2]
    if copy.is_file() and copy.stat().st_size == size:
        return copy
    files, path = _parts(url)
    with replacing(copy, "copy of a remote file") as beside:
        try:
            with files.open(path, "rb") as source, beside.open("wb") as target:
                while piece := source.read(CHUNK):
                    target.write(piece)
        except OSError as error:
            raise _failed(url, error) from error
    return copy


def piped(command: str, folder: Path) -> Path:
    """What a command writes to its standard output, as a file in ``folder``: run once, cached under the command's own name.

    A stream cannot be read at an offset; a file can. Raises SourceError when the command fails, OutputError.
    """
    digest = hashlib.blake2b(command.encode(), digest_size=8).hexdigest()
    copy = folder / f"pipe-{digest}.tar"
    if copy.is_file():
        return copy
    with replacing(copy, "output of a pipe") as beside, beside.open("wb") as target:
        done = subprocess.run(command, shell=True, stdout=target, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            message = " ".join(done.stderr.decode(errors="replace").split())[-200:]
            raise SourceError(f"pipe:{command}: ended with code {done.returncode} ({message}).")
    return copy


def has_ranges(url: str) -> bool:
    """Whether a store gives parts of a file. One that does not has to be copied whole."""
    try:
        return len(read_range(url, 0, 1)) == 1
    except SourceError:
        return False


def listed(pattern: str) -> list[str]:
    """The remote files that match a pattern, sorted, as whole addresses. Raises SourceError."""
    files, path = _parts(pattern)
    scheme = pattern.partition("://")[0]
    try:
        return [f"{scheme}://{name.lstrip('/')}" for name in sorted(files.glob(path))]
    except Exception as error:
        raise _failed(pattern, error) from error


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:160] if text else type(error).__name__
