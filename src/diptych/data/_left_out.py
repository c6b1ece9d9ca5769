"""What opening a source left out, said in one line and held against the limit of bad samples.

Formats count it while they index (``LeftOut``); bad samples that are met later are the loader's.
"""

from __future__ import annotations

from diptych import log
from diptych.data._base import LeftOut, Source
from diptych.errors import SourceError

ENOUGH = 20  # rows below which a share says nothing


def say_left_out(spec: str, used: int, left_out: tuple[LeftOut, ...]) -> None:
    """Log one line with every reason, its count and an example; nothing where nothing was left out."""
    if left_out:
        (log.warn if any(item.bad for item in left_out) else log.info)(
            f"{spec}: {used:,} records are used; left out: {reasons(left_out)}"
        )


def check_left_out(source: Source, limit: float) -> None:
    """Raise SourceError when the share of what is bad among all is above ``limit`` (--bad-samples-max)."""
    bad = sum(item.count for item in source.left_out if item.bad)
    total = bad + len(source)
    if total >= ENOUGH and bad > limit * total:
        raise SourceError(
            f"{source.name}: {bad:,} of {total:,} were left out, more than --bad-samples-max {limit:.2%}: "
            f"{reasons(tuple(item for item in source.left_out if item.bad))}. Inspect with: diptych data stats."
        )


def reasons(left_out: tuple[LeftOut, ...]) -> str:
    """All reasons on one line, each with its count and an example."""
    return "; ".join(f"{item.count:,} x {item.reason} ({item.example})" for item in left_out)
