"""``vocab.json`` and ``merges.txt`` as an engine: CLIP's cleaning, split and merges over somebody else's vocabulary.

What transformers' CLIPTokenizer writes. Needs no library. The special tokens of ``added_tokens.json`` beside it belong to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from diptych.errors import WeightsError
from diptych.text._clean import fix_text
from diptych.text._merges import END, START, WORD_END, byte_symbols, merged, splitter
from diptych.text._pieces import Engine

VOCABULARY, MERGES, ADDED = "vocab.json", "merges.txt", "added_tokens.json"
UNKNOWN = ("<unk>", "[UNK]", END)
CACHE_LIMIT = 1 << 18  # words; beyond it the cache is emptied


def is_own_bpe(vocabulary: Path) -> bool:
    """Whether this file goes with merges."""
    return vocabulary.name == VOCABULARY


def own_bpe(vocabulary: Path) -> Engine:
    """The engine of ``vocab.json`` with the merges beside it. Raises WeightsError for files that are not these."""
    ids = _ids(vocabulary)
    merges = vocabulary.with_name(MERGES)
    if not merges.is_file():
        raise WeightsError(f"{vocabulary}: without {MERGES} beside it, which says how words are built; put it there.")
    lines = merges.read_text(encoding="utf-8", errors="strict").splitlines()
    pairs = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise WeightsError(f"{merges}: not a list of merges: a line is not two symbols.")
    ranks = {(pair[0], pair[1]): rank for rank, pair in enumerate(pairs)}
    merging = _Merging(ids, ranks)
    special = frozenset(ids[token] for token in (START, END, "<unk>", "<pad>", "[UNK]") if token in ids)
    return Engine(merging.encode, merging.decode, max(ids.values()) + 1, special)


def _ids(vocabulary: Path) -> dict[str, int]:
    try:
        ids = json.loads(vocabulary.read_text(encoding="utf-8"))
        added = vocabulary.with_name(ADDED)
        extra = json.loads(added.read_text(encoding="utf-8")) if added.is_file() else {}
        ids = {**ids, **extra}
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{vocabulary}: not a vocabulary ({str(error)[:120]}).") from error
    if not ids or not all(type(number) is int and number >= 0 for number in ids.values()):
        raise WeightsError(f"{vocabulary}: not a vocabulary: tokens do not have numbers.")
    return ids


class _Merging:
    """Words to ids by merging, cached; and back."""

    def __init__(self, ids: Mapping[str, int], ranks: Mapping[tuple[str, str], int]) -> None:
        self.ids, self.ranks = ids, ranks
        self.symbols, _ = byte_symbols()
        self.values = {symbol: value for value, symbol in enumerate(self.symbols)}
        self.names = {number: token for token, number in ids.items()}
        self.unknown = next((ids[token] for token in UNKNOWN if token in ids), None)
        self.cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of a text, cleaned and lower-cased as CLIP's."""
        result: list[int] = []
        for piece in splitter().findall(fix_text(text).lower()):
            if piece not in self.cache:
                if len(self.cache) >= CACHE_LIMIT:
                    self.cache.clear()
                self.cache[piece] = self._word(piece)
            result += self.cache[piece]
        return result

    def _word(self, piece: str) -> list[int]:
        if piece in (START, END) and piece in self.ids:
            return [self.ids[piece]]
        letters = [self.symbols[byte] for byte in piece.encode("utf-8")]
        tokens = merged([*letters[:-1], letters[-1] + WORD_END], self.ranks)
        ids = [self.ids.get(token, self.unknown) for token in tokens]
        missing = [token for token, number in zip(tokens, ids, strict=True) if number is None]
        if missing:
            raise WeightsError(f"the vocabulary has no {missing[0]!r}, and no token for what is unknown.")
        return [number for number in ids if number is not None]

    def decode(self, ids: list[int]) -> str:
        """The text of ids, words apart by one space."""
        symbols = "".join(self.names.get(number, "") for number in ids).replace(WORD_END, " ")
        spelled = bytes(self.values.get(symbol, 32) if symbol != " " else 32 for symbol in symbols)
        return spelled.decode("utf-8", errors="replace").strip()
