"""What table-like formats share: the names people give to columns, paths as people write them, and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diptych.errors import SourceError

IMAGE_KEYS = ("filepath", "image", "img_key", "image_path", "img_path", "path", "filename", "file_name", "file", "img")
CAPTION_KEYS = ("captions", "caption", "title", "caption_key", "text", "texts", "raw", "description")


def image_path(given: str, root: Path) -> Path:
    """The path of an image: Windows separators mended, relative paths taken from ``root`` or, failing that, as given."""
    path = Path(given.replace("\\", "/"))
    if path.is_absolute():
        return path
    beside = root / path
    return path if not beside.exists() and path.exists() else beside


def captions_of(value: Any) -> tuple[str, ...]:
    """A text, or a list of texts, as a tuple; nothing as an empty one."""
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(str(item) for item in value)
    return (str(value),)


def chosen_split(of_row: np.ndarray, split: str, sizes: dict[str, int], where: str) -> np.ndarray:
    """The rows of one split. Raises SourceError, listing the splits there are."""
    rows = np.flatnonzero(of_row == split)
    if not len(rows):
        seen = ", ".join(f"{name} ({count})" for name, count in sizes.items()) or "none"
        raise SourceError(f"{where}: no split {split!r}; splits seen: {seen}.")
    return rows
