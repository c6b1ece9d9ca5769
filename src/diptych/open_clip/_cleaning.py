"""What open_clip's tokenizers do to a text before they split it, under open_clip's names."""

from __future__ import annotations

import html
import string
from collections.abc import Callable

from diptych.open_clip._errors import InvalidError

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def basic_clean(text: str) -> str:
    """Mojibake fixed and HTML entities resolved (twice, for doubly escaped ones); nothing around the text."""
    import ftfy

    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def whitespace_clean(text: str) -> str:
    """One space between words, none around the text."""
    return " ".join(text.split())


def canonicalize_text(
    text: str,
    *,
    keep_punctuation_exact_string: str | None = None,
    trans_punctuation: dict[int, int | None] = NO_PUNCTUATION,
) -> str:
    """Lower case, no ASCII punctuation, single spaces; underscores are spaces (SigLIP's recipe, of big_vision).

    ``keep_punctuation_exact_string`` stays where it stands, such as "{}" of a prompt.
    """
    exact = keep_punctuation_exact_string
    spaced = text.replace("_", " ")
    parts = spaced.split(exact) if exact else [spaced]
    return whitespace_clean((exact or "").join(part.translate(trans_punctuation) for part in parts).lower())


def clean_lower(text: str) -> str:
    """Fixed, single spaces, lower case: CLIP's recipe."""
    return whitespace_clean(basic_clean(text)).lower()


def clean_whitespace(text: str) -> str:
    """Fixed, single spaces."""
    return whitespace_clean(basic_clean(text))


def clean_canonicalize(text: str) -> str:
    """Fixed, then ``canonicalize_text``."""
    return canonicalize_text(basic_clean(text))


CLEANERS: dict[str, Callable[[str], str]] = {
    "canonicalize": clean_canonicalize,
    "lower": clean_lower,
    "whitespace": clean_whitespace,
}


def get_clean_fn(type: str) -> Callable[[str], str]:
    """The function called canonicalize, lower or whitespace. Raises ConfigError for others."""
    if type not in CLEANERS:
        raise InvalidError(f"clean {type!r} was given; expected one of {', '.join(CLEANERS)}.")
    return CLEANERS[type]
