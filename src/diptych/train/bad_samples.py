"""The list of bad samples of a run, each with its reason, in the order in which they were met.

``bad_samples.jsonl`` in the run's folder, ``bad_samples.rankK.jsonl`` for the others: {"key": ..., "reason": ...} per line.
Appends, so that a resumed run adds to the list of the first sitting.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from diptych import log


class BadSampleLog:
    """Writes what is new of a growing list."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.path = folder / (f"bad_samples.rank{rank}.jsonl" if rank else "bad_samples.jsonl")
        self._written = 0

    def append(self, bad: Sequence[tuple[str, str]]) -> None:
        """Append the (key, reason) pairs that are new since the last call; the first is also logged."""
        new = bad[self._written :]
        if not new:
            return
        if not self._written:
            key, reason = new[0]
            log.warn(f"{key}: {reason}; bad samples are replaced by others and listed in {self.path}")
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in new)
        self._written += len(new)
