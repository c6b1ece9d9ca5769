"""Text views by name: what an objective asks for in ``Wants.texts`` and the data gives, one recipe per name.

A recipe takes the run's ``TextViewOptions`` and gives a view: which caption of the record it is made of, and what is done to it,
all chance from a generator that the caller seeds by (seed, epoch, record, view). Which caption of a record that is, is decided
by the data package; what is done to it, here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diptych.text._synonyms import Synonyms, Thesaurus

Change = Callable[[str, np.random.Generator], str]
DELETED = 0.1
"""Probability that "augmented" deletes a word, where it deletes: EDA's p of DeCLIP."""
TRIES = 3  # draws of a second word to swap with


@dataclass(frozen=True)
class TextViewOptions:
    """What a run says of its texts: whose ``synonyms`` are used, and which captions are bad samples.

    ``bad_captions`` "cjk": those with a Chinese character (U+4E00 to U+9FA5), as DeCLIP's data has it; "" for none.
    """

    synonyms: Thesaurus = "shipped"
    bad_captions: Literal["", "cjk"] = ""


@dataclass(frozen=True)
class TextView:
    """A view: ``change`` of a caption, and which ``caption`` of the record that is.

    "own": chosen for this view by its own stream. "first": the one that the view "caption" gets, whether or not it is wanted.
    "another": any other than that one, so the record must have two.
    """

    change: Change
    caption: Literal["own", "first", "another"] = "own"

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        """The caption, changed; all randomness from ``rng``."""
        return self.change(text, rng)


def unchanged(text: str, rng: np.random.Generator) -> str:
    """The caption itself."""
    return text


@dataclass(frozen=True)
class Eda:
    """Easy data augmentation (Wei and Zou 2019, "EDA") as DeCLIP runs it, by textaugment: one of three operations.

    Chosen uniformly: a synonym for one word, wherever it occurs; one swap of two words; or deletion of each word with
    probability 0.1. Insertion is not used. Stop words are not replaced. White space between words becomes one space; at least
    one word stays. Departures: a word is looked up without the punctuation around it, and keeps it; the choice among synonyms
    has a fixed order.
    """

    synonyms: Synonyms

    def __call__(self, text: str, rng: np.random.Generator) -> str:
        """The changed caption; a text without a word is returned as it is."""
        terms = text.split()
        if not terms:
            return text
        operation = (self._replaced, _swapped, _deleted)[int(rng.integers(3))]
        return " ".join(operation(terms, rng))

    def _replaced(self, terms: list[str], rng: np.random.Generator) -> list[str]:
        """One word that has synonyms, drawn uniformly of the distinct ones, by one of them, drawn uniformly."""
        bare = [_bare(term) for term in terms]
        candidates = {word: synonyms for word in dict.fromkeys(bare) if (synonyms := self.synonyms.of(word))}
        if not candidates:
            return terms
        word = list(candidates)[int(rng.integers(len(candidates)))]
        synonym = candidates[word][int(rng.integers(len(candidates[word])))]
        return [
            term.lower().replace(word, synonym) if own == word else term for term, own in zip(terms, bare, strict=True)
        ]


def _bare(term: str) -> str:
    """A word in lower case, without the punctuation around it: what a thesaurus is asked."""
    lower = term.lower()
    letters = [index for index, letter in enumerate(lower) if letter.isalnum()]
    return lower[letters[0] : letters[-1] + 1] if letters else ""


def _swapped(terms: list[str], rng: np.random.Generator) -> list[str]:
    """Two words exchanged; none where three draws of a second word gave the first again, as textaugment has it."""
    first = second = int(rng.integers(len(terms)))
    for _ in range(TRIES):
        second = int(rng.integers(len(terms)))
        if second != first:
            break
    terms = list(terms)
    terms[first], terms[second] = terms[second], terms[first]
    return terms


def _deleted(terms: list[str], rng: np.random.Generator) -> list[str]:
    """Each word left out with probability ``DELETED``; where none is left, a random one; a single word stays."""
    if len(terms) == 1:
        return terms
    remaining = [term for term, draw in zip(terms, rng.random(len(terms)), strict=True) if draw >= DELETED]
    return remaining or [terms[int(rng.integers(len(terms)))]]


def _caption(options: TextViewOptions) -> TextView:
    return TextView(unchanged)


def _augmented(options: TextViewOptions) -> TextView:
    synonyms = Synonyms(options.synonyms)
    synonyms.check()
    return TextView(Eda(synonyms), "first")


def _another(options: TextViewOptions) -> TextView:
    return TextView(unchanged, "another")


VIEWS: dict[str, Callable[[TextViewOptions], TextView]] = {
    "caption": _caption, "augmented": _augmented, "another": _another,
}  # fmt: skip
"""Name -> recipe. "caption": a caption of the record; "augmented": the same one, changed by EDA; "another": another of them."""
