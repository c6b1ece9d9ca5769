"""CLIP's byte-pair encoding (Radford et al. 2021): lower-cased, 49,408 ids, the same ids as OpenAI's and open_clip's.

A text is cleaned (ftfy, HTML entities twice, white space), lower-cased, split into words, and each word's bytes are merged.
Plain printable ASCII skips the cleaning, which cannot change it, and takes whole words from a cache; everything else takes
the full path. Both give the same ids (tests hold this). A literal ``<|endoftext|>`` in a text becomes the end token, as in the
references. The merges are OpenAI's, under MIT (BPE_LICENSE.txt).
"""

from __future__ import annotations

import gzip
import sys
from array import array
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from diptych.text._base import TOKENIZERS, Tokenizer, ids_of
from diptych.text._clean import fix_text
from diptych.text._merges import END, START, WORD_END, byte_symbols, merged, splitter

MERGES = Path(__file__).parent / "bpe_merges.txt.gz"
CACHE_LIMIT = 1 << 18  # words; beyond it the cache is emptied, so that a stream of random strings cannot fill memory
TOGETHER = 64  # captions that are checked together: one that is not plain sends only so many the long way


class Vocabulary(NamedTuple):
    """``symbols`` writes each of the 256 bytes as one printable character; ``ranks`` orders merges; ``ids`` numbers tokens."""

    symbols: tuple[str, ...]
    ranks: Mapping[tuple[str, str], int]
    ids: Mapping[str, int]


@cache
def vocabulary() -> Vocabulary:
    """The vocabulary, read on first use."""
    merges = [tuple(line.split()) for line in gzip.decompress(MERGES.read_bytes()).decode().splitlines()]
    symbols, in_order = byte_symbols()
    tokens = [
        *in_order,
        *(symbol + WORD_END for symbol in in_order),
        *(first + second for first, second in merges),
        START,
        END,
    ]
    return Vocabulary(
        symbols,
        {(first, second): rank for rank, (first, second) in enumerate(merges)},
        {token: number for number, token in enumerate(tokens)},
    )


@TOKENIZERS.register("bpe")
class Bpe(Tokenizer):
    """CLIP's tokenizer. ``mask_id`` None has no mask token; DeCLIP's models have one after CLIP's vocabulary, 49408."""

    name = "bpe"
    vocab_size = 49408
    start_id = 49406
    end_id = 49407

    def __init__(self, context_length: int = 77, mask_id: int | None = None) -> None:
        super().__init__(context_length)
        self.mask_id = mask_id
        self._vocabulary = _Vocabulary()

    def __getstate__(self) -> dict[str, object]:
        """A worker process starts with an empty cache."""
        return {"context_length": self.context_length, "mask_id": self.mask_id}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def packed(self, text: str) -> bytes:
        """The ids of a text, without start and end, as native 32-bit integers."""
        if _plain(text):
            return b"".join(map(self._vocabulary.__getitem__, text.lower().split()))
        return self.packed_without_cache(text)

    def packed_all(self, texts: Sequence[str]) -> list[bytes]:
        """``packed`` of each; captions that are plain, as most are, are checked together."""
        packed, ids, joined = [], self._vocabulary.__getitem__, b"".join
        for begin in range(0, len(texts), TOGETHER):
            some = texts[begin : begin + TOGETHER]
            if _plain("".join(some)):  # then none of them has a line break
                packed += [joined(map(ids, line.split())) for line in "\n".join(some).lower().split("\n")]
            else:
                packed += map(self.packed, some)
        return packed

    def packed_without_cache(self, text: str) -> bytes:
        """The full path, for any text: the reference implementation of the fast one."""
        return _pieces(clean(text))

    def decode(self, ids: Sequence[int] | np.ndarray | Tensor) -> str:
        """The text of ids, words apart by one space; start, end and padding are left out."""
        names, values = _inverse()
        skipped = (self.start_id, self.end_id, self.pad_id, self.mask_id)
        known = max(self.vocab_size, (self.mask_id or 0) + 1)
        symbols = "".join(names[number] for number in ids_of(ids, known) if number not in skipped).replace(
            WORD_END, " "
        )
        spelled = bytes(values[symbol] if symbol != " " else 32 for symbol in symbols)
        return spelled.decode("utf-8", errors="replace").strip()


def _plain(text: str) -> bool:
    # Printable ASCII without & and < is a fixed point of ftfy and of HTML unescaping, and its words are what is
    # between spaces: no pattern of the split crosses white space.
    return text.isascii() and text.isprintable() and "&" not in text and "<" not in text


class _Vocabulary(dict[str, bytes]):
    """Word -> its ids, learned when first asked for."""

    def __missing__(self, word: str) -> bytes:
        if len(self) >= CACHE_LIMIT:
            self.clear()
        # Letters of ASCII are one piece, written as they are.
        ids = self[word] = _word(word, vocabulary()) if word.isalpha() else _pieces(word)
        return ids


def _pieces(text: str) -> bytes:
    """The ids of a cleaned text."""
    known = vocabulary()
    ids: list[bytes] = []
    for piece in splitter().findall(text):
        if piece in (START, END):
            ids.append(known.ids[piece].to_bytes(4, sys.byteorder))
        else:
            ids.append(_word("".join(known.symbols[byte] for byte in piece.encode("utf-8")), known))
    return b"".join(ids)


def _word(symbols: str, known: Vocabulary) -> bytes:
    """The ids of one word, written in the vocabulary's symbols."""
    whole = known.ids.get(symbols + WORD_END)
    # Every token that ends a word is what its own letters merge to (a test checks all of them): no need to merge.
    if whole is not None:
        return whole.to_bytes(4, sys.byteorder)
    ids = [known.ids[token] for token in merged([*symbols[:-1], symbols[-1] + WORD_END], known.ranks)]
    return array("I", ids).tobytes()


@cache
def _inverse() -> tuple[dict[int, str], dict[str, int]]:
    known = vocabulary()
    return {number: token for token, number in known.ids.items()}, {
        symbol: byte for byte, symbol in enumerate(known.symbols)
    }


def clean(text: str) -> str:
    """The fixed text in lower case."""
    return fix_text(text).lower()
