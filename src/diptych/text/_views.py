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
    terms = text.split()
    if not terms:
        return text
    operation = _OPERATIONS[int(rng.integers(len(_OPERATIONS)))]
    return " ".join(operation(terms, max(1, round(CHANGED * len(terms))), rng))


def _deleted(terms: list[str], count: int, rng: np.random.Generator) -> list[str]:
    gone = set(rng.choice(len(terms), min(count, len(terms) - 1), replace=False).tolist())
    return [word for index, word in enumerate(terms) if index not in gone]


def _swapped(terms: list[str], count: int, rng: np.random.Generator) -> list[str]:
    terms = list(terms)
    for _ in range(count if len(terms) > 1 else 0):
        first, second = rng.choice(len(terms), 2, replace=False)
        terms[first], terms[second] = terms[second], terms[first]
    return terms


def _inserted(terms: list[str], count: int, rng: np.random.Generator) -> list[str]:
    longer = list(terms)
    for _ in range(count):
        longer.insert(int(rng.integers(len(longer) + 1)), terms[int(rng.integers(len(terms)))])
    return longer


_OPERATIONS = (_deleted, _swapped, _inserted)
VIEWS: dict[str, TextView] = {"caption": caption, "augmented": augmented}
