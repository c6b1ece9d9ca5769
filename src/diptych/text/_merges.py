"""Byte-pair encoding as CLIP does it: the split into words, the printable form of bytes, and the merging of a word.

Shared by OpenAI's vocabulary and by vocabularies of a model's own. Holds no vocabulary.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping
from functools import cache

import regex

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
LONG = 100  # letters from which a word is merged by a heap
SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def byte_symbols() -> tuple[tuple[str, ...], list[str]]:
    """A printable character for each byte, by byte and in the vocabulary's order: printable bytes stand for themselves."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in set(own)]
    drawn = {**{byte: chr(byte) for byte in own}, **{byte: chr(256 + index) for index, byte in enumerate(rest)}}
    return tuple(drawn[byte] for byte in range(256)), [drawn[byte] for byte in [*own, *rest]]


@cache
def splitter() -> regex.Pattern[str]:
    """What finds the pieces of a cleaned text, in order."""
    return regex.compile(SPLIT, regex.IGNORECASE)


def merged(symbols: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """Merge neighbors, lowest rank first and leftmost among equals, until no pair of neighbors has a rank."""
    if len(symbols) > LONG:
        return _merged_long(symbols, ranks)
    symbols, none, rank = list(symbols), len(ranks), ranks.get
    pair_ranks = [rank(pair, none) for pair in itertools.pairwise(symbols)]
    while pair_ranks and (best := min(pair_ranks)) != none:
        index = pair_ranks.index(best)
        symbols[index] += symbols.pop(index + 1)
        del pair_ranks[index]  # only the pairs beside the merged one change
        if index < len(pair_ranks):
            pair_ranks[index] = rank((symbols[index], symbols[index + 1]), none)
        if index:
            pair_ranks[index - 1] = rank((symbols[index - 1], symbols[index]), none)
    return symbols


def _merged_long(symbols: list[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The same by a heap of pairs over a linked list: for words of thousands of letters, whose square would take minutes."""
    symbols, end = list(symbols), len(symbols)
    after, before = list(range(1, end + 1)), list(range(-1, end - 1))
    heap = [(ranks[pair], index) for index, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank, index = heapq.heappop(heap)
        other = after[index]
        # A pair whose parts were merged meanwhile is no pair any more, or another one.
        if not symbols[index] or other >= end or ranks.get((symbols[index], symbols[other])) != rank:
            continue
        symbols[index] += symbols[other]
        symbols[other], after[index] = "", after[other]
        if after[index] < end:
            before[after[index]] = index
        for left in (before[index], index):
            if left < 0 or after[left] >= end:
                continue
            pair_rank = ranks.get((symbols[left], symbols[after[left]]))
            if pair_rank is not None:
                heapq.heappush(heap, (pair_rank, left))
    return [symbol for symbol in symbols if symbol]
