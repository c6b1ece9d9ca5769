"""Every caption a record of its own: an epoch then shows each of an image's captions once.

The counts are read once, when the source is built; the images are not decoded for it. Groups of the same image are passed on.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from diptych.data._base import LeftOut, Source
from diptych.errors import SourceError
from diptych.types import Record


class CaptionPerRecord:
    """A source whose records have one caption each."""

    def __init__(self, source: Source) -> None:
        self.source, self.name = source, source.name
        self._ends = np.cumsum([len(source.record(index).captions) for index in range(len(source))], dtype=np.int64)
        if not len(self):
            raise SourceError(f"{source.name}: no record has a caption.")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def record(self, index: int) -> Record:
        """One caption and its image."""
        position = int(np.searchsorted(self._ends, index, side="right"))
        number = index - (int(self._ends[position - 1]) if position else 0)
        record = self.source.record(position)
        group = record.group if record.group is not None else record.key
        return dataclasses.replace(
            record, key=f"{record.key}@{number}", captions=(record.captions[number],), group=group
        )

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Those of the source."""
        return self.source.classes

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """That of the source."""
        return self.source.left_out

    def splits(self) -> dict[str, int]:
        """Those of the source."""
        return self.source.splits()
