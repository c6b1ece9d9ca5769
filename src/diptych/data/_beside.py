"""What stands beside a picture under its own name, in a folder as in a tar: KEY.txt, KEY.caption, KEY.json, KEY.cls.

The rule: captions are those of .txt, one a line; where there is none, of .caption, then of the .json's known keys, as open_clip
has it. ``--csv-caption-key`` chooses: txt, json, or a key of the JSON. It knows neither tars nor folders, and opens nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diptych import log
from diptych.data._caption_values import Shape, shape_of, texts_of
from diptych.data._columns import CAPTION_KEYS, LABEL_KEYS, LABEL_NAME_KEYS, label_of
from diptych.errors import RecordError, SourceError

TEXTS = ("txt", "caption", "json", "cls")
LINE_END = re.compile(r"\r\n|\n|\r")
MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
NUMBER = re.compile(rb"-?\d+(\.\d*)?(e-?\d+)?")
SHOWN = 60  # characters of a caption in a message


class Beside(NamedTuple):
    """Captions; the label as it is written, a number or a name, None without one; and the JSON's keys with the .txt's lines."""

    captions: tuple[str, ...]
    label: str | int | None
    extra: dict[str, Any]


def text_ending(caption_key: str) -> str:
    """The ending that --csv-caption-key names, "txt" or a longer one, "blip.txt"; empty where it names a key of the JSON."""
    lowered = caption_key.lower().lstrip(".")
    return lowered if lowered == "txt" or lowered.endswith(".txt") else ""


def described(texts: Mapping[str, bytes], key: str, caption_key: str = "") -> Beside:
    """What the texts of one picture say, by ending. Raises RecordError for what is no text, no JSON, or no caption."""
    metadata = _metadata(texts["json"], key) if "json" in texts else {}
    lines = {ending: lines_of(texts[ending], f"{key}.{ending}") for ending in ("txt", "caption") if ending in texts}
    if text_ending(caption_key):
        captions = lines.get("txt", ())
    elif caption_key and caption_key != "json" and ("json" in texts or caption_key in lines):
        captions = _json_captions(metadata, key, (caption_key,)) or lines.get(caption_key, ())
    else:
        written = () if caption_key == "json" else lines.get("txt") or lines.get("caption") or ()
        captions = written or _json_captions(metadata, key)
    label = texts["cls"].decode("utf-8", errors="replace").strip() if "cls" in texts else _first(metadata, LABEL_KEYS)
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    elif "cls" not in texts and captions and (not isinstance(label, str | int) or as_number(label) is None):
        label = None  # a word about the picture, beside its captions
    if label is not None and (name := _first(metadata, LABEL_NAME_KEYS)) is not None:
        metadata.setdefault("label_name", name)
    for ending, own in lines.items():
        metadata.setdefault(ending, list(own))
    return Beside(captions, label if isinstance(label, str | int) else None, metadata)


def numbered(label: str | int | None, classes: Mapping[str, int] | None, key: str) -> int | None:
    """The label's number; of a name the one that ``classes`` gives it. Raises RecordError for what is neither."""
    if label is None or label == "":
        return None
    number = classes.get(str(label)) if classes else as_number(label)
    if number is None:
        kind = "name" if classes else "number"
        raise RecordError(key, f"its label {str(label)[:SHOWN]!r} is no {kind}, and those of other records are")
    return number


def as_number(label: str | int) -> int | None:
    """3, "3", "3.0" and " 3 " are the number 3; None for a name."""
    return label_of(re.sub(r"\.0*$", "", label.strip()) if isinstance(label, str) else label)


def lines_of(data: bytes, where: str) -> tuple[str, ...]:
    """The lines of a text that are not blank. Raises RecordError for what is neither UTF-8 nor marked as UTF-16."""
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise RecordError(where, f"not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
    return tuple(line.strip() for line in LINE_END.split(text) if line.strip())


def disagreement(texts: Mapping[str, bytes], key: str) -> str:
    """In which way the caption that is taken by default differs from another beside it; empty where none does."""
    offered = {}
    for ending in [ending for ending in TEXTS[:3] if ending in texts]:
        try:
            offered[f".{ending}"] = described({ending: texts[ending]}, key).captions
        except RecordError:
            continue
    offered = {ending: captions for ending, captions in offered.items() if captions}
    (first, taken), *others = offered.items() if offered else [("", ())]
    for ending, captions in others:
        if not {" ".join(text.split()) for text in captions} & {" ".join(text.split()) for text in taken}:
            return f"of {key}, {first} says {taken[0][:SHOWN]!r} and {ending} {captions[0][:SHOWN]!r}"
    return ""


def _metadata(data: bytes, key: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{key}.json", f"not valid JSON ({str(error).splitlines()[0][:160]})") from error
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        return {"captions": value}
    if not isinstance(value, dict):
        raise RecordError(f"{key}.json", f"expected an object {{...}} or captions, got {type(value).__name__}")
    return value


def _json_captions(metadata: Mapping[str, Any], key: str, names: Sequence[str] = CAPTION_KEYS) -> tuple[str, ...]:
    """The captions under the first of the names that holds some. Raises RecordError for a value that is no caption."""
    name = next((name for name in names if _value(metadata, name)), "")
    return texts_of(_value(metadata, name), Shape(written=True, column=f"{name!r} in its .json"), key) if name else ()


def _value(metadata: Mapping[str, Any], name: str) -> Any:
    """What stands under a key, or under a path of keys with dots."""
    value: Any = metadata.get(name)
    if value is None and "." in name:
        value = metadata
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _first(metadata: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((metadata[name] for name in names if metadata.get(name) not in (None, "")), None)


def inspect_texts(samples: Sequence[tuple[str, Mapping[str, bytes]]], spec: str, caption_key: str) -> bool:
    """Say in one line each what some samples' texts show: several lines, texts that disagree. Returns whether labels are names.

    Raises SourceError for a ``caption_key`` that none of them has. What is wrong with a single one is said when its turn comes.
    """
    labels, several, difference, metadata = [], "", "", []
    _check_shapes(samples, spec, caption_key)
    for key, texts in samples:
        try:
            beside = described(texts, key, caption_key)
        except RecordError:
            continue
        metadata.append(beside.extra)
        labels += [] if beside.label in (None, "") else [beside.label]
        if not several and beside.captions == tuple(beside.extra.get("txt", ())) and len(beside.captions) > 1:
            several = f"{len(beside.captions)} in {key}.txt"
        if not caption_key and not difference:
            difference = disagreement(texts, key)
    boxes = [key for key, texts in samples if "txt" in texts and _are_boxes(texts["txt"])]
    if boxes and len(boxes) == len(samples) and not caption_key:
        raise SourceError(
            f"{spec}: the .txt of {boxes[0]} holds boxes, no captions (--csv-caption-key json reads the .json)."
        )
    if several:
        log.info(f"{spec}: each line of a .txt is taken for a caption ({several})")
    if difference:
        log.warn(
            f"{spec}: the texts beside a picture differ: {difference}; the first is taken, --csv-caption-key (txt, json) chooses."
        )
    if caption_key and metadata:
        _require_caption_key([texts for _, texts in samples], metadata, caption_key, spec)
    return any(label is not None and as_number(label) is None for label in labels)


def _check_shapes(samples: Sequence[tuple[str, Mapping[str, bytes]]], spec: str, caption_key: str) -> None:
    """Raise SourceError where the captions of the .json are objects or lists of words; say where they are lists as text."""
    by_name: dict[str, list[tuple[str, Any]]] = {}
    for key, texts in samples:
        if "json" not in texts or (not caption_key and {"txt", "caption"} & set(texts)) or text_ending(caption_key):
            continue
        with contextlib.suppress(RecordError):
            metadata = _metadata(texts["json"], key)
            names = CAPTION_KEYS if caption_key in ("", "json") else (caption_key,)
            name = next((name for name in names if _value(metadata, name)), "")
            by_name.setdefault(name, []).append((key, _value(metadata, name)))
    for name, items in by_name.items():
        if name and len(items) > 1:  # a single one is its sample's own error
            shape = shape_of([value for _, value in items], [key for key, _ in items], spec, name, "--csv-caption-key")
            if shape.said:
                log.info(f"{spec}: {shape.said}")


def _are_boxes(data: bytes) -> bool:
    """Whether every line is a class and at least four numbers, as detectors are trained on."""
    lines = [line.split() for line in data.splitlines() if line.strip()]
    return bool(lines) and all(len(line) > 4 and all(NUMBER.fullmatch(word) for word in line) for line in lines)


def _require_caption_key(
    texts: Sequence[Mapping[str, bytes]], metadata: Sequence[Mapping[str, Any]], caption_key: str, spec: str
) -> None:
    """Raise SourceError where no sample has what --csv-caption-key names; say it where only .txt can be meant."""
    ending = "txt" if text_ending(caption_key) else "json"
    if any(ending in item for item in texts):
        if ending == "txt" or caption_key == "json" or any(_value(item, caption_key) is not None for item in metadata):
            return
        seen = list(dict.fromkeys(key for item in metadata for key in item))
        raise SourceError(
            f"{spec}: no key {caption_key!r} (--csv-caption-key) in the .json; keys seen: {', '.join(seen[:10])}."
        )
    if caption_key in ("txt", "json") or ending == "txt":
        raise SourceError(f"{spec}: no .{ending} beside a picture, and --csv-caption-key {caption_key} asks for it.")
    if not any(caption_key in item for item in metadata):
        log.info(
            f"{spec}: --csv-caption-key {caption_key} names a key of lists and .json, and this has none; .txt is taken"
        )
