"""What table-like formats share: the names people give to columns, paths as people write them, and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.data._remote import is_remote, read_whole

IMAGE_KEYS = ("filepath", "image", "img_key", "image_path", "img_path", "path", "filename", "file_name", "file", "img")
# What our own shards say of a record beside its captions. No plain "key" or "group": files of others mean other things by them.
OWN_KEY, OWN_GROUP = "diptych_key", "diptych_group"
CAPTION_KEYS = ("captions", "caption", "title", "caption_key", "text", "texts", "raw", "description")


LABEL_KEYS = ("label", "class_index", "class_id", "target", "class")
LABEL_NAME_KEYS = ("label_name", "class_name", "classname", "name")


def image_of(given: str, root: Path) -> Path | bytes:
    """The image that a path means: a file here, or the bytes of a remote one. Windows separators are mended.

    Relative paths start from ``root`` or, failing that, from where the program runs; so does one that begins with a slash
    where no such file is (lists made for another machine). Raises SourceError when a remote one cannot be read.
    """
    if is_remote(given):
        return read_whole(given)
    path = Path(given.replace("\\", "/"))
    if path.is_absolute() and path.exists():
        return path
    beside = root / str(path).lstrip("/")
    if path.is_absolute():
        return beside if beside.exists() else path
    return path if not beside.exists() and path.exists() else beside


def captions_of(value: Any) -> tuple[str, ...]:
    """A text, or a list of texts, as a tuple; nothing as an empty one."""
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(str(item) for item in value)
    return (str(value),)
