"""What the value of a caption column is: a text, a list of texts or of objects with one, or such a list written as text.

What is none of those (a list of words, an object of languages, a number) is refused with the record's name and never trained
as it stands. Knows values, not columns: which column holds captions is ``_fields``.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diptych.errors import RecordError, SourceError

TEXT_KEYS = ("caption", "raw", "text", "sentence")  # of an object that is a caption: Karpathy's, COCO's, ...
# Scripts that put no blank between words: there a text without blanks may well be a sentence.
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\U0003ffff]")
ANSWERING = ("gpt", "assistant", "model", "bot")
MEAN_LENGTH = 1.25  # words per item of a list, below which it is one of words
MANY = 4  # items from which one list counts as words and not as short captions; more such lists decide about a column


@dataclass(frozen=True)
class Shape:
    """What the sample showed: ``written``: lists stand there as text. ``said``: a line about it, or ""."""

    written: bool = False
    said: str = ""
    column: str = ""


def texts_of(value: Any, shape: Shape, key: str) -> tuple[str, ...]:
    """The captions of one value. Raises RecordError naming ``key`` for what is no caption."""
    if isinstance(value, str):
        items = _written(value) if shape.written else None
        if items is None:
            return (value,)
        value = items
    if value is None:
        return ()
    if (answers := _answers(value)) is not None:
        return answers[:1]
    if not isinstance(value, list | tuple):
        return (_text(value, shape, key),)
    texts = tuple(_text(item, shape, key) for item in value if item is not None)
    if len(texts) >= MANY and all(map(_is_word, texts)):
        raise RecordError(key, f"its {shape.column or 'caption'} is a list of words ({_few(texts)})", HOW_TO_WRITE)
    return texts


HOW_TO_WRITE = "write one text, or a list of sentences"


def shape_of(values: Sequence[Any], keys: Sequence[str], where: str, column: str, flag: str) -> Shape:
    """What the sampled values of a column are; ``keys`` name their records. Raises SourceError for what cannot be a caption."""
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    lists = [_written(text) for text in texts if text.lstrip()[:1] in "[("]
    written = 2 * sum(items is not None for items in lists) > len(
        texts
    )  # one in a plain column is a caption in brackets
    shape = Shape(written, f"lists written as text under {column!r} are read as lists" if written else "", column)
    objects = [index for index, value in enumerate(values) if isinstance(value, Mapping) and _inner(value) is None]
    if 2 * len(objects) > sum(value is not None for value in values):  # a single one is its row's own error
        first = values[objects[0]]
        # The first object that has texts of its own is what a flag can reach into.
        inside = [f"{column}.{name}" for name, item in first.items() if isinstance(item, str | list)][:10]
        advice = (
            f"choose one with {flag} {inside[0]} (seen: {', '.join(inside)})" if inside else f"name a text with {flag}"
        )
        raise SourceError(f"{keys[objects[0]]}: its {column} is an object and no caption; {advice}.")
    turns = [len(answers) for value in values if (answers := _answers(value)) is not None]
    if turns:
        more = ", the first one where there are several" if max(turns) > 1 else ""
        return dataclasses.replace(shape, said=f"captions are the answers in {column!r}{more}")
    counts, lists_seen, some = [], 0, ""
    for value, key in zip(values, keys, strict=True):
        given = _written(value) if written and isinstance(value, str) else value
        if isinstance(given, list | tuple) and len(given) > 1:
            items = [item for item in given if isinstance(item, str)]
            lists_seen += 1
            counts += [1 if _is_word(item) else 2 for item in items]
            some = some or f"{key}: its {column} is a list of words ({_few(items)})"
    if counts and lists_seen > MANY and sum(counts) <= MEAN_LENGTH * len(counts):
        raise SourceError(f"{some}, as those of other rows are; {HOW_TO_WRITE}.")
    return shape


def _answers(value: Any) -> tuple[str, ...] | None:
    """What the model says in a conversation as LLaVA or OpenAI writes it; None for what is no conversation."""
    if not isinstance(value, list | tuple) or not value or not all(isinstance(turn, Mapping) for turn in value):
        return None
    speakers = [turn.get("from", turn.get("role")) for turn in value]
    if not all(isinstance(speaker, str) for speaker in speakers):
        return None
    said = [turn.get("value", turn.get("content")) for turn in value]
    texts = [text for speaker, text in zip(speakers, said, strict=True) if speaker.lower() in ANSWERING]
    return tuple(text.replace("<image>", "").strip() for text in texts if isinstance(text, str))


def _text(value: Any, shape: Shape, key: str) -> str:
    if isinstance(value, Mapping):
        value = _inner(value) if _inner(value) is not None else value
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return value
    named = shape.column or "caption"
    if isinstance(value, Mapping):
        keys = ", ".join(list(map(str, value))[:10])
        raise RecordError(key, f"its {named} is an object ({keys})", "name a text in it with --csv-caption-key A.B")
    kind = "a list in a list" if isinstance(value, list | tuple) else f"the {type(value).__name__} {value!r:.30}"
    raise RecordError(key, f"its {named} is {kind}, expected text", "write it in quotes, or leave it out")


def _inner(value: Mapping[str, Any]) -> str | None:
    """The text of an object that is a caption: the one known key that holds a text."""
    return next((value[name] for name in TEXT_KEYS if isinstance(value.get(name), str)), None)


def _written(text: str) -> list[Any] | None:
    """The list that a text spells, as JSON or as Python prints it; None for a plain text."""
    text = text.strip()
    if text[:1] + text[-1:] not in ("[]", "()"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            with warnings.catch_warnings(action="ignore"):  # of a backslash that escapes nothing
                value = ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return None
    is_list = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    return list(value) if is_list else None


def _is_word(text: Any) -> bool:
    return isinstance(text, str) and len(text.split()) <= 1 and not UNSPACED.search(text)


def _few(texts: Sequence[str]) -> str:
    return ", ".join(repr(text[:20]) for text in texts[:4]) + (", ..." if len(texts) > 4 else "")
