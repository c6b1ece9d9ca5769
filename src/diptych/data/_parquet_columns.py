"""Single columns of Parquet files, read so that damage, an odd kind or a column that one file lacks is an error of the data.

Knows kinds and values, not what a column means. pyarrow is an extra, so it is imported where it is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diptych.errors import SourceError

SAMPLED = 64  # rows that decide about columns


def faults() -> tuple[type[Exception], ...]:
    """What pyarrow raises for files and values that it cannot read; its own errors are of many bases."""
    from pyarrow.lib import ArrowException

    return (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, ArrowException)


def reason(error: Exception) -> str:
    """An error's first line, short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


@contextlib.contextmanager
def readable(path: str, what: str = "not a readable Parquet file") -> Iterator[None]:
    """Raise SourceError naming the file for whatever pyarrow raises inside."""
    try:
        yield
    except faults() as error:
        raise SourceError(f"{path}: {what} ({reason(error)}).") from error


def names_of(file: Any, path: str) -> list[str]:
    """The names of a file's columns. Raises SourceError for one that stands there twice."""
    names = list(file.schema_arrow.names)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SourceError(f"{path}: has two columns named {twice!r}; write one of them under another name.")
    return names


def holds_bytes(kind: Any) -> bool:
    """Whether a column holds encoded images, which deciding about columns needs not read."""
    return "binary" in str(kind)


def is_text(kind: Any) -> bool:
    """Whether a column is text, plain or coded by a dictionary."""
    if str(kind).startswith("dictionary"):
        kind = kind.value_type
    return str(kind) in {"string", "large_string", "string_view"}


def is_caption(kind: Any) -> bool:
    """Whether a column is text or lists of it, which --caption-weights may name."""
    return is_text(kind) or (str(kind).startswith("list<") and "string" in str(kind))


def sample(files: Sequence[Any], paths: Sequence[str], names: Sequence[str], image: str) -> list[dict[str, Any]]:
    """The first rows of the first file that has some, as they decide about columns; bytes of images stand for themselves.

    Raises SourceError for a file that cannot be read. A value that Python cannot hold is None here: its record is the bad one.
    """
    blank = b"bytes"
    for file, path in zip(files, paths, strict=True):
        with readable(path):
            kinds = {field.name: field.type for field in file.schema_arrow if field.name in names}
            light = [name for name, kind in kinds.items() if name != image and not holds_bytes(kind)]
            for batch in file.iter_batches(batch_size=SAMPLED, columns=light):
                if batch.num_rows or not light:
                    columns = {name: map(_python, batch.column(name)) for name in light}
                    given = dict.fromkeys(names) | ({image: blank} if image in names else {})
                    rows = zip(*columns.values(), strict=True) if light else [()] * batch.num_rows
                    return [given | dict(zip(light, row, strict=True)) for row in rows] or [given]
    return [dict.fromkeys(names)]


def texts(files: Sequence[Any], paths: Sequence[str], column: str) -> tuple[np.ndarray, list[str | None]]:
    """A column of text over all files: a number for each row, and the texts that the numbers stand for; number 0 is none.

    Rows of a file without the column, or with one that is no text, have none. Raises SourceError.
    """
    numbers: dict[str | None, int] = {None: 0}
    pieces = []
    for file, path in zip(files, paths, strict=True):
        count = file.metadata.num_rows
        names = file.schema_arrow.names
        if column not in names or not is_text(file.schema_arrow.field(column).type):
            pieces.append(np.zeros(count, dtype=np.int64))
            continue
        with readable(path, f"its column {column!r} cannot be read"):
            values = file.read(columns=[column]).column(column)
            for chunk in values.chunks:
                coded = chunk if hasattr(chunk, "dictionary") else chunk.dictionary_encode()
                known = np.array(
                    [numbers.setdefault(text, len(numbers)) for text in coded.dictionary.to_pylist()] + [0]
                )
                pieces.append(known[coded.indices.fill_null(len(known) - 1).to_numpy(zero_copy_only=False)])
    return np.concatenate([np.zeros(0, dtype=np.int64), *pieces]), list(numbers)


def _python(value: Any) -> Any:
    try:
        return value.as_py()
    except faults():
        return None
