"""The rows of a list that decide what its columns are: some from the beginning, as many spread over the rest.

Which rows, and what happens to one that cannot be read; what they decide is ``_fields``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diptych.errors import RecordError, SourceError

SAMPLE = 64  # rows from the beginning, and as many spread over the rest


def sample_rows(count: int) -> list[int]:
    """The numbers of the rows that decide: the first 64, and 64 spread over the rest."""
    first = list(range(min(SAMPLE, count)))
    step = max((count - SAMPLE) // SAMPLE, 1)
    return first + list(range(SAMPLE, count, step))[:SAMPLE]


def sampled(count: int, row: Callable[[int], Mapping[str, Any]], question: str = "") -> list[Mapping[str, Any]]:
    """The rows that decide, of ``count``; one that cannot be read is a bad sample, and its own error when it is used.

    Raises SourceError, with ``question`` about the likely cause, where none of them can be read.
    """
    rows, failed = [], None
    for number in sample_rows(count):
        try:
            rows.append(row(number))
        except RecordError as error:
            failed = failed or error
    if failed is not None and not rows:
        raise SourceError(failed.line + question)
    return rows
