"""Text views by name: what an objective asks for in ``Wants.texts`` and the data gives, one recipe per name.

A recipe takes a caption and a random generator, and gives a caption; all chance comes from that generator, which the caller
seeds by (seed, epoch, record, view). Captions of a record are chosen by ``data``, before a recipe sees one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

TextView = Callable[[str, np.random.Generator], str]
CHANGED = 0.1
"""The share of a caption's words that "augmented" changes, at least one: EDA's alpha."""


def caption(text: str, rng: np.random.Generator) -> str:
    """The caption itself."""
    return text


def augmented(text: str, rng: np.random.Generator) -> str:
    """One of EDA's operations on the caption's words (Wei and Zou 2019, "EDA"): deletion, swap, or insertion.

    EDA inserts and replaces synonyms from a thesaurus. There is none here: insertion repeats words of the caption at random
    positions, and nothing is replaced. At least one word stays; white space between words becomes one space.
    """
    caption_words = text.split()
    if not caption_words:
        return text
    operation = _OPERATIONS[int(rng.integers(len(_OPERATIONS)))]
    return " ".join(operation(caption_words, max(1, round(CHANGED * len(caption_words))), rng))


def _deleted(caption_words: list[str], count: int, rng: np.random.Generator) -> list[str]:
    gone = set(rng.choice(len(caption_words), min(count, len(caption_words) - 1), replace=False).tolist())
    return [word for index, word in enumerate(caption_words) if index not in gone]


def _swapped(caption_words: list[str], count: int, rng: np.random.Generator) -> list[str]:
    caption_words = list(caption_words)
    for _ in range(count if len(caption_words) > 1 else 0):
        first, second = rng.choice(len(caption_words), 2, replace=False)
        caption_words[first], caption_words[second] = caption_words[second], caption_words[first]
    return caption_words


def _inserted(caption_words: list[str], count: int, rng: np.random.Generator) -> list[str]:
    longer = list(caption_words)
    for _ in range(count):
        longer.insert(int(rng.integers(len(longer) + 1)), caption_words[int(rng.integers(len(caption_words)))])
    return longer


_OPERATIONS = (_deleted, _swapped, _inserted)
VIEWS: dict[str, TextView] = {"caption": caption, "augmented": augmented}
