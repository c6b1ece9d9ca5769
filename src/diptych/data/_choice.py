"""Which caption of a record a text view is made of: a random one, the first, one by weights, or another than that.

A choice is a function of the record and a random generator, so the caption that one view got can be computed again for another
view. What is done to a caption afterwards is the text package's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diptych.data._columns import captions_of
from diptych.errors import RecordError
from diptych.types import Record

CHINESE = re.compile("[\u4e00-\u9fa5]")
"""The characters by which DeCLIP's loader sorts captions out."""


@dataclass(frozen=True)
class CaptionChoice:
    """``captions`` chooses among several of a record; ``weights`` draws among the texts that a record's own keys hold.

    ``bad`` "cjk": a caption with a Chinese character is a RecordError, so that the record counts as a bad sample.
    """

    captions: Literal["random", "first"] = "random"
    weights: tuple[tuple[str, float], ...] = ()
    bad: Literal["", "cjk"] = ""

    def __call__(self, record: Record, rng: np.random.Generator) -> str:
        """The caption of a record. Raises RecordError where there is none, or a bad one was chosen."""
        if not record.captions:
            raise RecordError(record.key, "has no caption", "give it one, or leave it out")
        if self.weights:
            return self._checked(record, self._by_weight(record, rng))
        chosen = record.captions[int(rng.integers(len(record.captions))) if self.captions == "random" else 0]
        if not chosen.strip():
            raise RecordError(record.key, "the caption is empty", "write one, or leave the record out")
        return self._checked(record, chosen)

    def another(self, record: Record, chosen: str, rng: np.random.Generator) -> str:
        """A random caption of a record with another text than ``chosen``, by the same weights.

        Raises RecordError where there is none.
        """
        pools = [
            ([text for text in texts if text.strip() != chosen.strip() and not self._is_bad(text)], weight)
            for texts, weight in self._texts(record)
        ]
        pools = [(texts, weight) for texts, weight in pools if texts and weight]
        if not pools:
            raise RecordError(record.key, "has a single caption, and another one of the same image is wanted")
        return _drawn(pools, rng)

    def distinct(self, record: Record) -> int:
        """How many different captions of the record could be chosen."""
        return len({text.strip() for texts, weight in self._texts(record) for text in texts if weight})

    def _texts(self, record: Record) -> list[tuple[list[str], float]]:
        """The captions that are not empty, by key with the key's weight; all of one weight where no keys are named."""
        texts = [(captions_of(record.extra.get(key)), weight) for key, weight in self.weights]
        texts = texts or [(record.captions, 1.0)]
        return [([text for text in captions if text.strip()], weight) for captions, weight in texts]

    def _by_weight(self, record: Record, rng: np.random.Generator) -> str:
        """One of the named texts that this record has, and that are not empty."""
        usable = [(texts, weight) for texts, weight in self._texts(record) if texts]
        if not usable:
            named = ", ".join(key for key, _ in self.weights)
            raise RecordError(record.key, f"has none of the captions {named}", "give it one, or leave the record out")
        return _drawn(usable, rng)

    def _checked(self, record: Record, chosen: str) -> str:
        if self._is_bad(chosen):
            raise RecordError(
                record.key, "the caption has Chinese characters", "leave --bad-captions out to train on it"
            )
        return chosen

    def _is_bad(self, text: str) -> bool:
        return not text.strip() or (self.bad == "cjk" and CHINESE.search(text) is not None)


def _drawn(pools: Sequence[tuple[Sequence[str], float]], rng: np.random.Generator) -> str:
    """A text of a pool that is drawn by its weight."""
    shares = np.array([weight for _, weight in pools])
    texts = pools[int(rng.choice(len(pools), p=shares / shares.sum()))][0]
    return texts[int(rng.integers(len(texts)))]
