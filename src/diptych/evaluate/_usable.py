"""Whether a source holds anything that can be used: one record of it is decoded before any work starts.

A source of which nothing can be read is an error at once, not after the weights were loaded or the last step was taken. What
share of it is bad is counted later, when all of it is read.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

from diptych.data import spread
from diptych.errors import RecordError, SourceError
from diptych.evaluate._decode import Records
from diptych.image import decode_pixels
from diptych.types import Record

TRIED = 16  # records of a source, evenly spread, before it is given up


def check_usable(source: Records, flag: str, use: Callable[[Record, int], object]) -> None:
    """Make a sample of one record by ``use(record, index)``; a bad one is no fault while another is good.

    Raises SourceError with the commonest reasons when none of the records tried can be used.
    """
    reasons: collections.Counter[str] = collections.Counter()
    first: RecordError | None = None
    for index in spread(len(source), TRIED):
        try:
            use(source.record(index), index)
        except RecordError as error:
            reasons[error.reason.partition("(")[0].partition(":")[0].strip()] += 1
            first = first or error
        else:
            return
    if first is not None:
        said = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        raise SourceError(
            f"{flag} {source.name}: none of the {reasons.total()} records tried can be used ({said}); the first: {first.line}"
        )


def use_labeled(record: Record, index: int) -> None:
    """What an evaluation needs of a labeled image. Raises RecordError."""
    decode_pixels(record.image, record.key)
    if record.label is None:
        raise RecordError(record.key, "has no label")


def use_pair(record: Record, index: int) -> None:
    """What an evaluation needs of an image with its texts. Raises RecordError."""
    decode_pixels(record.image, record.key)
    if not any(caption.strip() for caption in record.captions):
        raise RecordError(record.key, "has no caption")
