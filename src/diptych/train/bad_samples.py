"""The list of bad samples of a run, each with its reason, in the order in which they were met.

``bad_samples.jsonl`` in the run's folder, ``bad_samples.rankK.jsonl`` for the others: {"key": ..., "reason": ...} per line;
with ``"used": true`` where the image is damaged and was used all the same.
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
        self._damaged: set[str] = set()
        self._seen = 0  # of the growing list of damaged images: it is not read again in every step

    def append_damaged(self, damaged: Sequence[tuple[str, str]]) -> None:
        """Append images that are damaged and were used, each once; the first is also logged."""
        new = {key: damage for key, damage in damaged[self._seen :] if key not in self._damaged}
        self._seen = len(damaged)
        if not new:
            return
        if not self._damaged:
            key, damage = next(iter(new.items()))
            log.warn(
                f"{key}: damaged image data, used all the same ({damage}); listed in {self.path}; see --bad-samples-strict"
            )
        self._damaged |= set(new)
        self._write(
            [{"key": key, "reason": f"damaged image data ({damage})", "used": True} for key, damage in new.items()]
        )

    def _write(self, rows: Sequence[dict[str, object]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def append(self, bad: Sequence[tuple[str, str]]) -> None:
        """Append the (key, reason) pairs that are new since the last call; the first is also logged."""
        new = bad[self._written :]
        if not new:
            return
        if not self._written:
            key, reason = new[0]
            log.warn(f"{key}: {reason}; bad samples are replaced by others and listed in {self.path}")
        self._write([{"key": key, "reason": reason} for key, reason in new])
        self._written += len(new)
