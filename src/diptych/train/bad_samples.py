"""The list of bad samples of a run: every one that was met, with the reason, as it was met.

``bad_samples.jsonl`` in the run's folder, ``bad_samples.rankK.jsonl`` for the others: {"key": ..., "reason": ...} per line.
Appends, so that a continued run keeps what the first sitting found.
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

    def keep(self, bad: Sequence[tuple[str, str]]) -> None:
        """Append the (key, reason) pairs that were not there the last time; the first one is also told."""
        new = bad[self._written :]
        if not new:
            return
        if not self._written:
            key, reason = new[0]
            log.warn(f"{key}: {reason}; bad samples are replaced by others and listed in {self.path}")
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in new)
        self._written += len(new)
