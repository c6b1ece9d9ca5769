"""Every caption a record of its own: an epoch then shows each of a picture's captions once.

The counts are read once, when the source is made; the pictures are not decoded for it. Same-picture groups travel on.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from diptych.errors import SourceError
from diptych.types import Record

if TYPE_CHECKING:
    from diptych.data import Source


class CaptionPerRecord:
    """A source whose records have one caption each."""

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.classes = source, source.name, source.classes
        self._ends = np.cumsum([len(source.record(index).captions) for index in range(len(source))], dtype=np.int64)
        if not len(self):
            raise SourceError(f"{source.name}: no record has a caption.")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def record(self, index: int) -> Record:
        """One caption and its picture."""
        place = int(np.searchsorted(self._ends, index, side="right"))
        number = index - (int(self._ends[place - 1]) if place else 0)
        found = self.source.record(place)
        group = found.group if found.group is not None else found.key
        return dataclasses.replace(found, key=f"{found.key}@{number}", captions=(found.captions[number],), group=group)

    def splits(self) -> dict[str, int]:
        """Those of the source."""
        return self.source.splits()
