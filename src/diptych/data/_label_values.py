"""What the values of a label column are: numbers, or names of classes; never both, and never a text about the image.

Numbers count as such however they are spelled ("3", " 3", "3.0"). Knows values, not columns: those are ``_fields``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diptych.data._columns import label_of
from diptych.errors import SourceError

Row = Mapping[str, Any]
ENOUGH = 20  # rows below which a share says nothing


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: null, a blank text, or the NaN that pandas writes for both."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def class_names(values: Iterable[Any], where: str) -> tuple[str, ...]:
    """The classes that a column of names has, sorted. Raises SourceError where names and numbers are mixed."""
    names = {str(value).strip() for value in values if not is_missing(value)}
    number = next((name for name in sorted(names) if label_of(name) is not None), None)
    if number is not None and any(label_of(name) is None for name in names):
        name = next(name for name in sorted(names) if label_of(name) is None)
        raise SourceError(_mixed(where, number, name))
    return tuple(sorted(names))


def are_names(rows: Sequence[Row], label: str, where: str) -> bool:
    """Whether labels are names and not numbers. Raises SourceError for both in one column, and for what is neither."""
    values = [row[label] for row in rows if not is_missing(row.get(label))]
    odd = next((value for value in values if isinstance(value, list | Mapping)), None)
    if odd is not None:
        raise SourceError(f"{where}: its {label!r} holds {str(odd)[:60]}, expected one class: a number or a name.")
    number = next((value for value in values if label_of(value) is not None), None)
    name = next((value for value in values if label_of(value) is None), None)
    if number is not None and name is not None:
        raise SourceError(_mixed(f"{where}, column {label!r}", number, name))
    if isinstance(name, float):
        raise SourceError(f"{where}: its {label!r} holds {name!r}, expected whole numbers or names.")
    return name is not None


def all_differ(rows: Sequence[Row], label: str) -> bool:
    """Whether nearly every row has a label of its own: a text about the image, and no class."""
    values = [str(row[label]) for row in rows if not is_missing(row.get(label))]
    return len(values) >= ENOUGH and len(set(values)) > 0.8 * len(values)


def _mixed(where: str, number: Any, name: Any) -> str:
    return f"{where}: labels are numbers ({number!s:.40}) and names ({name!s:.40}) in one column; write all as one or the other."


def check_pairs(rows: Sequence[Row], label: str, label_name: str, where: str) -> None:
    """One name for one label, among the sampled rows."""
    known: dict[str, str] = {}
    for row in rows:
        number, name = row.get(label), row.get(label_name)
        if isinstance(name, str) and not is_missing(number) and known.setdefault(str(number).strip(), name) != name:
            raise SourceError(
                f"{where}: {label} {str(number).strip()} is named both {known[str(number).strip()]!r} and {name!r} "
                f"({label_name}); correct the list."
            )
