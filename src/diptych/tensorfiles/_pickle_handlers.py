"""Shared by the readers of pickles: how a name is refused, how damage becomes one line, which zip entries are bombs.

A pickle is a program that may import and call. ``SafeUnpickler`` makes plain data of it; ``_pickled_arrays`` and
``_pickled_modules`` say which names mean what; ``refuse_odd_keys`` scans what ``torch.load(weights_only=True)`` will read,
since its hashing of keys is C code that a deep key brings down. Every other name ends in a WeightsError before anything happens.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from diptych.errors import WeightsError
from diptych.tensorfiles._safe_unpickler import Opaque, PickleHandlers, UnsafePickleError, run

MOST_COMPRESSED = 200  # times that a compressed entry may grow, and a megabyte; numbers hardly shrink at all


def refuse(path: Path, module: str, name: str) -> WeightsError:
    """The error for a name that is not on the list."""
    return WeightsError(
        f"{path}: asks to import {module}.{name}, which no weight file needs; refused, nothing was run. Do not trust its source."
    )


class Name:
    """An allowed name: it can be compared, and does nothing."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


CONTAINERS: dict[str, type] = {"tuple": tuple, "list": list, "dict": dict, "OrderedDict": dict}


def contained(name: str, items: object) -> object:
    """A tuple, list or dict of plain items, as the name says. Raises pickle.UnpicklingError."""
    if not isinstance(items, list | tuple):
        raise pickle.UnpicklingError(f"a {name} of {type(items).__name__}")
    if CONTAINERS[name] is not dict:
        return CONTAINERS[name](items)
    pairs = [item for item in items if isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str)]
    if len(pairs) != len(items):
        raise pickle.UnpicklingError(f"a {name} of odd pairs")
    return {key: value for key, value in pairs}  # noqa: C416 (mypy does not see that they are pairs)


@contextlib.contextmanager
def raising_weights_error(path: Path, what: str) -> Iterator[None]:
    """Turn whatever a damaged file makes its readers raise into a WeightsError of one line that begins with ``what``."""
    try:
        yield
    except WeightsError:
        raise
    # numpy, zipfile, zlib, lzma and pickletools each have errors of their own: none of them runs the file's code.
    except Exception as error:
        raise WeightsError(f"{path}: {what} ({first_line(error)}).") from error


def zip_entry(archive: zipfile.ZipFile, name: str, limit: int | None = None) -> bytes:
    """The bytes of an entry, unless it was crafted to fill the memory; ``limit`` in bytes."""
    info = archive.getinfo(name)
    if info.file_size > MOST_COMPRESSED * info.compress_size + (1 << 20) or (limit and info.file_size > limit):
        raise UnsafePickleError(f"{name} would grow to {info.file_size:,} bytes")
    return archive.read(name)


class _AnyNames(PickleHandlers):
    """Lets a pickle through without making anything of its names: only keys are checked."""

    def find(self, module: str, name: str) -> Opaque:
        return Opaque()

    def call(self, what: object, arguments: tuple[object, ...]) -> Opaque:
        return Opaque()

    def build(self, instance: object, state: object) -> None:
        """Nothing."""

    def persistent(self, pid: object) -> Opaque:
        return Opaque()


def refuse_odd_keys(path: Path) -> None:
    """Raise WeightsError for a torch file whose dictionaries have other keys than text and numbers, before torch hashes them.

    Other damage is left to torch, which names it better.
    """
    try:
        for data in _pickles_of(path):
            run(data, _AnyNames())
    except UnsafePickleError as error:
        raise WeightsError(f"{path}: not a whole torch file ({first_line(error)}).") from error
    except Exception:
        return


def _pickles_of(path: Path) -> Iterator[IO[bytes]]:
    """A handle at the start of each pickle of a torch file."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.rpartition("/")[2] == "data.pkl":
                    yield io.BytesIO(zip_entry(archive, name))
        return
    with path.open("rb") as file:
        for _ in range(4):  # torch's old files: a number, a version, what the machine was, the data
            yield file


def first_line(error: BaseException) -> str:
    """An error's first line, of at most 200 characters."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
