"""How people lay out images and captions in one JSON text: arrays, objects of arrays, mappings, COCO's two arrays.

``items_of`` gives one object per image, with keys as ``_fields`` knows them, and a line that says what was recognized. The text
is in memory, its objects are not, except for COCO's captions. Knows texts, neither files nor the cache.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diptych.data._columns import CAPTION_KEYS, IMAGE_KEYS, USUAL_SPLITS, plain_name, seen
from diptych.data._csv_rows import is_picture
from diptych.errors import SourceError

DECODER = json.JSONDecoder()
BLANK = " \t\r\n"
SPLITS = (*USUAL_SPLITS, "restval")
IMAGES, CAPTIONS = frozenset(map(plain_name, IMAGE_KEYS)), frozenset(map(plain_name, (*CAPTION_KEYS, "conversations")))


class Member(NamedTuple):
    """A key of the outermost object: its value, or, for an array of objects, where that begins, and its first item."""

    value: Any
    position: int
    first: Any


def items_of(text: str, path: Path) -> tuple[Iterator[Any], str]:
    """The items, and what is said of the layout ("" for a plain one). Raises SourceError naming ``path``."""
    start = _skipped(text, 0)
    if text[start : start + 1] == "[":
        inside = _skipped(text, start + 1)
        if text[inside : inside + 1] == "{":  # decoded once; of other arrays, there may be one after the other
            return map(_plain, _array(text, start, path, whole=True)), ""
        end = _end(text, start, path)
        if end == len(text):
            return map(_plain, _array(text, start, path)), ""
        return map(_plain, _values(text, start, path)), ""
    if text[start : start + 1] != "{":
        raise SourceError(f"{path}: begins with {text[start : start + 20]!r}, expected an array or an object.")
    pairs, end = _members(text, start, path)
    members = dict(pairs)
    arrays = {name: item for name, item in pairs if item.first is not None}
    # Objects one after the other, over several lines each. An object with a list of images is Karpathy's or COCO's.
    if "images" not in arrays and (end < len(text) or _names_an_image(members)):
        return map(_plain, _values(text, start, path)), ""
    counts = Counter(name for name, _ in pairs)
    if twice := next((name for name in arrays if counts[name] > 1), None):
        raise SourceError(f"{path}: its list {twice!r} stands there twice; join them, or give each a name.")
    if "images" in arrays and "image_id" in _keys(arrays.get("annotations")):
        return _coco(text, arrays, path)
    if arrays:
        return _chosen(text, arrays, path)
    if len(pairs) == 1 and isinstance(only := pairs[0][1].value, list) and not is_picture(pairs[0][0]):
        return map(_plain, only), ""
    return _mapping(pairs, path)


def _chosen(text: str, arrays: dict[str, Member], path: Path) -> tuple[Iterator[Any], str]:
    """The array that holds images, or all of them where their names are those of splits."""
    if all(name.lower() in SPLITS for name in arrays):
        pairs = ((name, item) for name, member in arrays.items() for item in _array(text, member.position, path))
        items = (
            {**_plain(item), "split": _split(name.lower())} if isinstance(item, dict) else item for name, item in pairs
        )
        return items, f"its lists {seen(arrays)} are splits"
    wanted = [name for name, member in arrays.items() if {plain_name(key) for key in _keys(member)} & IMAGES]
    if len(wanted) > 1:
        wanted = [name for name in wanted if {plain_name(key) for key in _keys(arrays[name])} & CAPTIONS]
    if len(wanted) != 1 and len(arrays) > 1:
        raise SourceError(
            f"{path}: holds several lists ({seen(arrays)}), none of them clearly the pairs; write the one you mean alone."
        )
    name = wanted[0] if wanted else next(iter(arrays))
    return map(
        _plain, _array(text, arrays[name].position, path)
    ), "" if name == "images" else f"its records are those under {name!r}"


def _coco(text: str, arrays: dict[str, Member], path: Path) -> tuple[Iterator[Any], str]:
    """COCO's captions: pictures under "images", texts under "annotations", joined by the id of the picture."""
    if "caption" not in _keys(arrays["annotations"]):
        raise SourceError(
            f"{path}: its annotations hold no caption (keys: {seen(_keys(arrays['annotations']))}); take COCO's captions_*.json."
        )
    captions: dict[Any, list[str]] = {}
    for note in _array(text, arrays["annotations"].position, path):
        if isinstance(note, dict) and "caption" in note:
            captions.setdefault(_id(note.get("image_id")), []).append(note["caption"])
    rows, bare = [], 0
    for image in _array(text, arrays["images"].position, path):
        known = _id(image.get("id")) if isinstance(image, dict) else None
        texts = captions.pop(known, None) if known is not None else None
        if texts is None:
            bare += 1
            continue
        name = image.get("file_name") or str(image.get("coco_url") or "").rpartition("/")[2]
        rows.append({**{key: image[key] for key in ("id", "split") if key in image}, "image": name, "captions": texts})
    if not rows:
        raise SourceError(f"{path}: no annotation's image_id is the id of an image; were parts of two files joined?")
    total = sum(len(row["captions"]) for row in rows)
    said = f"COCO's layout, images and annotations apart: {len(rows):,} images with {total:,} captions"
    said += f"; {bare:,} images without one are left out" if bare else ""
    return iter(rows), said + (
        f"; captions of {len(captions):,} images that are not listed are left out" if captions else ""
    )


def _id(value: Any) -> int | str | None:
    """An id by which COCO's arrays can be joined; None for what is none."""
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _mapping(members: Sequence[tuple[str, Member]], path: Path) -> tuple[Iterator[Any], str]:
    """{path: caption or captions}, {path: {...}} or {number: {"image": ...}}."""
    if not members:
        raise SourceError(f"{path}: an empty object, it holds no record.")
    names, values = [name for name, _ in members], [member.value for _, member in members]
    if all(isinstance(value, dict) for value in values) and any(
        {plain_name(key) for key in value} & IMAGES for value in values
    ):
        return map(_plain, values), "a mapping from keys to records"
    image_names = sum(map(is_picture, names))
    if 2 * image_names <= len(members):
        known = "neither an array of images nor an object with one, nor a mapping from images to captions"
        raise SourceError(f"{path}: {known}; its keys: {seen(names)}.")
    items = (
        {"image": name, **value} if isinstance(value, dict) else {"image": name, "captions": value}
        for name, value in zip(names, values, strict=True)
    )
    return items, f"a mapping from {len(members):,} images to their captions"


def _plain(item: Any) -> Any:
    """An item with the keys of JSON Lines; what is no record stays, and is a bad sample when it is read."""
    if isinstance(item, list) and len(item) == 2 and all(isinstance(part, str | list) for part in item):
        first, second = item
        swapped = isinstance(second, str) and is_picture(second) and not (isinstance(first, str) and is_picture(first))
        return {"image": second, "captions": first} if swapped else {"image": first, "captions": second}
    if not isinstance(item, dict) or not isinstance(item.get("sentences"), list):
        return item
    sentences = item["sentences"]
    if not ({"filename", "filepath"} & set(item)) or not all(isinstance(text, dict) for text in sentences):
        return item
    # Karpathy's: a folder and a name, and sentences with their tokens.
    folder, name = item.get("filepath") or "", item.get("filename") or ""
    captions = [text["raw"] for text in sentences if isinstance(text.get("raw"), str)]
    row = {"image": f"{folder}/{name}" if folder and name else folder or name, "captions": captions}
    named = item.get("split")
    return row | ({"split": _split(named)} if isinstance(named, str) else {})


def _split(name: str) -> str:
    """Karpathy's "restval" is training data, as everybody who uses his split does."""
    return {"restval": "train"}.get(name, name)


def _keys(member: Member | None) -> tuple[str, ...]:
    return tuple(member.first) if member is not None and isinstance(member.first, dict) else ()


def _names_an_image(members: Mapping[str, Member]) -> bool:
    return any(plain_name(name) in IMAGES and isinstance(member.value, str | list) for name, member in members.items())


def _members(text: str, position: int, path: Path) -> tuple[list[tuple[str, Member]], int]:
    """The keys of the object that begins at ``position``, one that stands there twice twice, and where what follows begins."""
    members: list[tuple[str, Member]] = []
    position = _skipped(text, position + 1, ",")
    while text[position : position + 1] != "}":
        name, position = _decoded(text, position, path)
        position = _skipped(text, position)
        if not isinstance(name, str) or text[position : position + 1] != ":":
            line = text.count("\n", 0, position) + 1
            raise SourceError(f"{path}, line {line}: not valid JSON (expected a name in quotes and a colon).")
        position = _skipped(text, position + 1)
        begin, inside = position, _skipped(text, position + 1)
        if text[position : position + 1] == "[" and text[inside : inside + 1] == "{":
            members.append((name, Member(None, begin, next(_array(text, begin, path)))))
            position = _end(text, begin, path)
        else:
            value, position = _decoded(text, position, path)
            members.append((name, Member(value, begin, None)))
        position = _skipped(text, position, ",")
    return members, _skipped(text, position + 1)


def _array(text: str, position: int, path: Path, whole: bool = False) -> Iterator[Any]:
    """The items of the array that begins at ``position``. Raises SourceError where it is not the ``whole`` text."""
    position = _skipped(text, position + 1, ",")
    while text[position : position + 1] != "]":
        item, position = _decoded(text, position, path)
        position = _skipped(text, position, ",")
        yield item
    if whole and (rest := _skipped(text, position + 1)) < len(text):
        line = text.count("\n", 0, rest) + 1
        raise SourceError(
            f"{path}, line {line}: not valid JSON ({text[rest : rest + 20]!r} after the end of the array)."
        )


def _end(text: str, position: int, path: Path) -> int:
    """Where what follows an array begins."""
    position = _skipped(text, position + 1, ",")
    while text[position : position + 1] != "]":
        _, position = _decoded(text, position, path)
        position = _skipped(text, position, ",")
    return _skipped(text, position + 1)


def _values(text: str, position: int, path: Path) -> Iterator[Any]:
    """Values one after the other, to the end."""
    while position < len(text):
        value, position = _decoded(text, position, path)
        position = _skipped(text, position, ",")
        yield value


def _decoded(text: str, position: int, path: Path) -> tuple[Any, int]:
    try:
        return DECODER.raw_decode(text, position)
    except (ValueError, RecursionError) as error:
        line = text.count("\n", 0, position) + 1
        raise SourceError(f"{path}, line {line}: not valid JSON ({error}).") from error


def _skipped(text: str, position: int, more: str = "") -> int:
    """Where the next thing stands that is neither blank nor one of ``more``."""
    skipped = BLANK + more
    while position < len(text) and text[position] in skipped:
        position += 1
    return position
