"""What table-like formats share: the names people give to columns, paths as people write them, and splits."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diptych.data._remote import is_remote, read_whole
from diptych.errors import RecordError, SourceError

# One table for every format, in order of precedence; compared by ``plain_name``. What a file means: ``_fields``.
IMAGE_KEYS = (
    "filepath", "image", "img_key", "image_path", "img_path", "path", "filename", "file_name", "file", "img", "image_file",
    "image_name", "image_filename", "img_name", "images", "image_filepath", "img_file", "file_path",
)  # fmt: skip
CAPTION_KEYS = (
    "captions", "caption", "title", "caption_key", "text", "texts", "raw", "description", "sentences", "sentence", "comment",
    "prompt", "caption_text", "descriptions", "comments", "prompts", "conversations", "messages",
)  # fmt: skip
LABEL_KEYS = ("label", "class_index", "class_id", "target", "class", "labels", "label_id", "fine_label")
LABEL_NAME_KEYS = ("label_name", "class_name", "classname", "name", "class_label")
SPLIT_KEY = "split"
USUAL_SPLITS = ("train", "val", "validation", "valid", "dev", "test")
# What our own shards say of a record beside its captions. No plain "key" or "group": files of others mean other things by them.
OWN_KEY, OWN_GROUP = "diptych_key", "diptych_group"

WHOLE = re.compile(r"\s*([+-]?[0-9]{1,18})(?:\.0*)?\s*")
SHOWN = 10  # names in an error


def plain_name(name: str) -> str:
    """A column's name without what people vary: capitals, blanks, underscores, hyphens, and the mark of UTF-8."""
    return "".join(name.lower().replace("_", "").replace("-", "").replace("\ufeff", "").split())


def seen(names: Iterable[str]) -> str:
    """Names for an error, at most ten, each shortened."""
    given = [str(name)[:60] for name in names]
    more = f" and {len(given) - SHOWN} more" if len(given) > SHOWN else ""
    return ", ".join(given[:SHOWN]) + more


def split_name(value: Any) -> str:
    """A split as it is named; the usual ones in small letters, so that Train is train. What is no text names none."""
    name = value.strip() if isinstance(value, str) else ""
    return name.lower() if name.lower() in USUAL_SPLITS else name


def image_of(given: str, root: Path) -> Path | bytes:
    """The image that a path means: a local file, or the bytes of a remote one. Windows separators are fixed.

    Relative paths start from ``root`` or, failing that, from where the program runs; so does one that begins with a slash
    where no such file is (lists made for another machine). Raises SourceError when a remote one cannot be read, RecordError
    for what cannot be a path.
    """
    if is_remote(given):
        return read_whole(given)
    try:
        return _resolved(Path(given.replace("\\", "/")), root)
    except (OSError, ValueError) as error:  # longer than names may be; with a NUL, or half of a character, inside
        raise RecordError(given[:80].replace("\0", " "), "its image cannot be a path", "fix the list") from error


def _resolved(path: Path, root: Path) -> Path:
    if path.is_absolute() and path.exists():
        return path
    beside = root / str(path).lstrip("/")
    if path.is_absolute():
        return beside if beside.exists() else path
    return path if not beside.exists() and path.exists() else beside


def captions_of(value: Any) -> tuple[str, ...]:
    """A text, or a list of texts, as a tuple; nothing, and what is no text, is left out."""
    texts = (_text(item) for item in (value if isinstance(value, list) else [value]))
    return tuple(text for text in texts if text is not None)


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    return None


def label_of(value: Any) -> int | None:
    """The number of a class: a whole number, also as text or as a float ("3", " 3", "3.0", 3.0); None for anything else."""
    if isinstance(value, bytes):
        value = value.decode("ascii", errors="replace")
    if isinstance(value, str):
        whole = WHOLE.fullmatch(value)
        value = int(whole[1]) if whole else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and abs(value) < 1 << 62 else None


def parsed(text: str | bytes, where: str) -> Any:
    """The value of a JSON text. Raises SourceError for what is none, be it nested deeper than Python goes."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where}: not valid JSON ({str(error).splitlines()[0][:160]}).") from error
