"""What the readers of pickles share: how a name is refused, how any damage becomes one line, which entries of a zip are bombs.

A pickle is a program that may import and call. ``_machine`` makes plain data of it; ``_pickled_arrays`` and ``_pickled_modules``
say which names mean what; ``refuse_odd_keys`` looks through what ``torch.load(weights_only=True)`` will read, since its hashing
of keys is C code that a deep key brings down. Every other name ends in a WeightsError before anything happens.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diptych.errors import WeightsError
from diptych.tensorfiles._safe_unpickler import Opaque, PickleHandlers, UnsafePickleError, run

MOST_SQUEEZED = 200  # times that a compressed entry may grow, and a megabyte; numbers hardly shrink at all


def refuse(path: Path, module: str, name: str) -> WeightsError:
    """The error for a name that is not on the list."""
    return WeightsError(
        f"{path}: asks to import {module}.{name}, which no weight file needs; refused, nothing was run. Do not trust its source."
    )


class Name:
    """A name of the list above: it can be compared, and does nothing."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


CONTAINERS = {"tuple": tuple, "list": list, "dict": dict, "OrderedDict": dict}


def contained(name: str, items: Any) -> Any:
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
def told(path: Path, what: str) -> Iterator[None]:
    """Whatever a damaged file makes its readers raise, as one line."""
    try:
        yield
    except WeightsError:
        raise
    # numpy, zipfile, zlib, lzma and pickletools each have errors of their own: none of them runs the file's code.
    except Exception as error:
        raise WeightsError(f"{path}: {what} ({line(error)}).") from error


def entry(archive: zipfile.ZipFile, name: str, most: int | None = None) -> bytes:
    """The bytes of an entry, unless it was made to fill the memory."""
    info = archive.getinfo(name)
    if info.file_size > MOST_SQUEEZED * info.compress_size + (1 << 20) or (most and info.file_size > most):
        raise UnsafePickleError(f"{name} would grow to {info.file_size:,} bytes")
    return archive.read(name)


class _AnyNames(PickleHandlers):
    """Lets a pickle through without making anything of its names: only keys are looked at."""

    def find(self, module: str, name: str) -> Any:
        return Opaque()

    def call(self, what: Any, arguments: tuple[Any, ...]) -> Any:
        return Opaque()

    def build(self, made: Any, state: Any) -> None:
        """Nothing."""

    def persistent(self, pid: Any) -> Any:
        return Opaque()


def refuse_odd_keys(path: Path) -> None:
    """Raise WeightsError for a torch file whose dictionaries have other keys than text and numbers, before torch hashes them.

    Other damage is left to torch, which names it better.
    """
    try:
        for data in _pickles_of(path):
            run(data, _AnyNames())
    except UnsafePickleError as error:
        raise WeightsError(f"{path}: not a whole torch file ({line(error)}).") from error
    except Exception:
        return


def _pickles_of(path: Path) -> Iterator[Any]:
    """Where each pickle of a torch file begins."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.rpartition("/")[2] == "data.pkl":
                    yield io.BytesIO(entry(archive, name))
        return
    with path.open("rb") as file:
        for _ in range(4):  # torch's old files: a number, a version, what the machine was, the data
            yield file


def line(error: BaseException) -> str:
    """An error's first line."""
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
