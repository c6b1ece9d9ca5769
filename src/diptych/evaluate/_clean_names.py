"""Class names as files spell them (``AnnualCrop``, ``001.Black_footed_Albatross``) to what a prompt needs.

Only spelling: no dictionary, no synonyms, and hyphens stay. It changes nothing by itself; callers ask, or hint at it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from diptych.errors import ConfigError
from diptych.text import texts_of

WORDNET = re.compile(r"^(n\d{8}[-_. ]+)+(?=\S)", re.IGNORECASE)
NUMBER = re.compile(r"^(\d+[-_. ]+)+(?=[^\W\d])")
HUMP = re.compile(r"[^\W\d_]+")
SHARE = 0.2  # of names that are no words, from which it is the list's own habit


def clean_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names as lower-case words: "annual crop", "black footed albatross", "chihuahua".

    WordNet ids before a name go; numbers before names go where every name has one; underscores are spaces, and a single word with
    capitals inside is several. A name of which nothing would be left stays. Raises ConfigError when two different names would
    become one.
    """
    names = texts_of(names)
    cleaned = tuple(names)
    while (again := _once(cleaned)) != cleaned:
        cleaned = again
    origin: dict[str, str] = {}
    for name, result in zip(names, cleaned, strict=True):
        if origin.setdefault(result, name) != name:
            raise ConfigError(
                f"--clean-names: the classes {origin[result]!r} and {name!r} would both be {result!r}; leave it out, or name "
                "them with --labels."
            )
    return cleaned


def hint(names: Sequence[str]) -> str:
    """What ``clean_names`` would do for names of which many are no plain words, in a few of them; "" for all others."""
    numbered = bool(names) and all(NUMBER.match(name) for name in names)
    odd = [name for name in names if numbered or WORDNET.match(name) or _split(name) != name.lower()]
    if not odd or len(odd) < SHARE * len(names):
        return ""
    try:
        cleaned = dict(zip(names, clean_names(names), strict=True))
    except ConfigError:
        return ""
    return f"class names such as {odd[0]!r} are no plain words; --clean-names makes it {cleaned[odd[0]]!r}"


def _once(names: Sequence[str]) -> tuple[str, ...]:
    numbered = all(NUMBER.match(name) for name in names)
    return tuple(_cleaned(name, numbered) for name in names)


def _cleaned(name: str, numbered: bool) -> str:
    text = WORDNET.sub("", name.strip())
    if numbered:
        text = NUMBER.sub("", text)
    return _split(text) or name


def _split(text: str) -> str:
    """Lower-case words: what underscores and spaces part, or in a single word the humps of its capitals."""
    parts = text.replace("_", " ").split()
    if len(parts) == 1 and HUMP.fullmatch(parts[0]):
        parts = _humps(parts[0])
    return " ".join(parts).lower()


def _humps(word: str) -> list[str]:
    """``HTMLPage`` -> HTML, Page."""
    begins = [0]
    for index in range(1, len(word)):
        after_small = word[index - 1].islower() and word[index].isupper()
        ends_capitals = word[index - 1 : index + 1].isupper() and word[index + 1 : index + 2].islower()
        if (after_small or ends_capitals) and index - begins[-1] > 0:
            begins.append(index)
    return [word[begin:end] for begin, end in zip(begins, [*begins[1:], None], strict=True)]
