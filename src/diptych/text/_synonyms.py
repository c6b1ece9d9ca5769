"""Synonyms of a caption's words: a shipped table of WordNet 3.0, or NLTK's own corpus where that is asked for by name.

The shipped table (``wordnet_synonyms.txt.gz``, made by ``scripts/build_synonyms.py``; WORDNET_LICENSE.txt) has the 9,778 words
that captions use most, so that a run is the same on every machine; senses that WordNet calls insults are left out. NLTK's corpus
knows more words, and its edition is the machine's: a choice of the run, never a fallback. Nothing is drawn at random here.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from diptych import log
from diptych.errors import ConfigError

TABLE = Path(__file__).parent / "wordnet_synonyms.txt.gz"
Thesaurus = Literal["shipped", "nltk"]

_STOP_LIST = """
    a about above after again against all am an and any are as at be because been before being below between both but by
    can cannot could did do does doing don down during each few for from further had has have having he her here hers
    herself him himself his how i if in into is it its itself just me more most my myself no nor not now of off on once
    only or other our ours ourselves out over own same she should so some such than that the their theirs them themselves
    then there these they this those through to too under until up upon very was we were what when where which while who
    whom whose why will with within without would you your yours yourself yourselves
"""
STOP_LIST = frozenset(_STOP_LIST.split())
"""English words that carry grammar rather than content: never replaced, though WordNet has entries like "a" (angstrom)."""


def cleaned(lemma: str) -> str:
    """A lemma of WordNet as a caption would write it: lower case, letters and single spaces only; empty if less than two remain.

    ``living_thing`` is "living thing", ``T-shirt`` is "t shirt". No token of a vocabulary that marks something is spelled so.
    """
    letters = re.sub(r"[^a-z ]", "", lemma.replace("_", " ").replace("-", " ").lower())
    text = " ".join(letters.split())
    return text if len(text) > 1 else ""


@dataclass(frozen=True)
class Synonyms:
    """Synonyms by word, from the shipped table or NLTK's WordNet. Loader processes get the name, and read the data themselves."""

    thesaurus: Thesaurus = "shipped"

    def of(self, word: str) -> tuple[str, ...]:
        """The synonyms of a lower-case word, sorted, without itself; none for stop words and for what WordNet does not know.

        Those of all senses and parts of speech, as textaugment's EDA takes them; an inflected word (dogs) has those of its
        base form.
        """
        if word in STOP_LIST:
            return ()
        return shipped_table().get(word, ()) if self.thesaurus == "shipped" else _by_nltk(word)

    def check(self) -> None:
        """Raise ConfigError where NLTK or its corpus is asked for and absent; a line of the log says which edition is used."""
        if self.thesaurus == "nltk":
            _nltk_corpus()


@cache
def shipped_table() -> Mapping[str, tuple[str, ...]]:
    """Word -> its synonyms; read on first use. A line of the file is a word, a tab, and its synonyms with commas between."""
    rows = (line.split("\t") for line in gzip.decompress(TABLE.read_bytes()).decode("ascii").splitlines())
    return {word: tuple(synonyms.split(",")) for word, synonyms in rows}


@cache
def _by_nltk(word: str) -> tuple[str, ...]:
    lemmas = {cleaned(lemma.name()) for sense in _nltk_corpus().synsets(word) for lemma in sense.lemmas()}
    return tuple(sorted(lemmas - {"", word}))


@cache
def _nltk_corpus() -> Any:
    try:
        from nltk.corpus import wordnet
    except ImportError as error:
        raise ConfigError(
            "--synonyms nltk needs the package nltk: pip install nltk, or leave it out for the shipped table."
        ) from error
    try:
        wordnet.ensure_loaded()
    except LookupError as error:
        raise ConfigError(
            "--synonyms nltk: NLTK has no WordNet here; python -m nltk.downloader wordnet, or leave it out for the shipped table."
        ) from error
    log.info(
        f"synonyms of NLTK's WordNet {wordnet.get_version()}, insults included; an equal run needs the same edition"
    )
    return wordnet
