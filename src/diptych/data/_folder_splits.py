"""The splits of one folder as a source: each opened for itself, joined in order. Which is which is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from diptych import log
from diptych.data._base import LeftOut, Source
from diptych.types import Record


class FolderSplits:
    """Sources by the name of their split; ``closed``: splits that are there, but cannot be opened."""

    def __init__(self, name: str, parts: Mapping[str, Source], closed: Sequence[str] = ()) -> None:
        self.name, self._parts, self._closed = name, dict(parts), closed
        self._names = list(parts)
        self._ends = np.cumsum([len(part) for part in parts.values()])
        of_parts = [part.classes for part in parts.values()]
        self.classes: tuple[str, ...] | None = of_parts[0] if len(set(of_parts)) == 1 else None
        if len(set(of_parts)) > 1:
            log.warn(
                f"{name}: the splits {', '.join(self._names)} have other classes each; open one of them for labels."
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def record(self, index: int) -> Record:
        """The record; its key and group begin with the split."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        split = self._names[number]
        record = self._parts[split].record(index - (int(self._ends[number - 1]) if number else 0))
        group = None if record.group is None else f"{split}/{record.group}"
        return dataclasses.replace(
            record, key=f"{split}/{record.key}", group=group, label=record.label if self._numbered_alike else None
        )

    @property
    def _numbered_alike(self) -> bool:
        return self.classes is not None or all(part.classes is None for part in self._parts.values())

    @property
    def uses(self) -> frozenset[str] | None:
        """The options that any split uses; None where one does not say."""
        of_parts: list[frozenset[str] | None] = [getattr(part, "uses", None) for part in self._parts.values()]
        declared = [uses for uses in of_parts if uses is not None]
        return frozenset[str]().union(*declared) if len(declared) == len(of_parts) else None

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """That of all splits."""
        return tuple(item for part in self._parts.values() for item in part.left_out)

    def splits(self) -> dict[str, int]:
        """The size of each; 0 of one that cannot be opened, so that asking for it says why."""
        return {split: len(part) for split, part in self._parts.items()} | dict.fromkeys(self._closed, 0)
