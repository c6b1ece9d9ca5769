"""open_clip's ``tokenizer``: CLIP's byte-pair encoding under its names and attributes, over Diptych's fast one.

Ids are open_clip's. The special tokens are spelled ``<start_of_text>`` and ``<end_of_text>``, in texts too, as there; Diptych's
own tokenizer, ``diptych.get_tokenizer``, takes OpenAI's spelling.
"""

from __future__ import annotations

import gzip
import itertools
from array import array
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import regex
from torch import Tensor

from diptych.errors import ConfigError
from diptych.open_clip._cleaning import (
    basic_clean,
    canonicalize_text,
    clean_lower,
    get_clean_fn,
    whitespace_clean,
)
from diptych.open_clip._errors import InvalidError, MissingError
from diptych.open_clip._hf_tokenizers import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SigLipTokenizer
from diptych.open_clip._reductions import (
    get_reduction_mask_fn,
    random_mask_tokenize,
    rows,
    simple_mask_tokenize,
    syntax_mask_tokenize,
)
from diptych.text import byte_symbols, merged
from diptych.text.bpe import CACHE_LIMIT, MERGES, Bpe

__all__ = [
    "DEFAULT_CONTEXT_LENGTH",
    "HFTokenizer",
    "SigLipTokenizer",
    "SimpleTokenizer",
    "basic_clean",
    "bytes_to_unicode",
    "canonicalize_text",
    "decode",
    "default_bpe",
    "get_clean_fn",
    "get_pairs",
    "get_reduction_mask_fn",
    "random_mask_tokenize",
    "simple_mask_tokenize",
    "syntax_mask_tokenize",
    "tokenize",
    "whitespace_clean",
]

WORD_END = "</w>"
MERGE_COUNT = 49152 - 256 - 2
SPECIAL = ["<start_of_text>", "<end_of_text>"]
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@cache
def default_bpe() -> str:
    """The file with CLIP's merges, one a line. Unlike open_clip's it begins with the first merge."""
    return str(MERGES)


@cache
def bytes_to_unicode() -> dict[int, str]:
    """A printable character for each byte, in the order of the vocabulary."""
    symbols, in_order = byte_symbols()
    numbers = {symbol: byte for byte, symbol in enumerate(symbols)}
    return {numbers[symbol]: symbol for symbol in in_order}


def get_pairs(word: Sequence[str]) -> set[tuple[str, str]]:
    """The pairs of neighbors of a word."""
    return set(itertools.pairwise(word))


@cache
def _read_merges(path: str) -> Sequence[tuple[str, ...]]:
    try:
        with gzip.open(path) as file:
            lines = file.read().decode("utf-8").split("\n")
    except FileNotFoundError:
        raise MissingError(f"bpe_path {path} was given, which does not exist; expected a .txt.gz of merges.") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path}: no gzip-compressed text of merges ({error}).") from error
    first = 0 if Path(path) == MERGES else 1  # a version, in the files of OpenAI and open_clip
    merges = [tuple(line.split()) for line in lines[first : first + MERGE_COUNT]]
    while merges and not merges[-1]:
        merges.pop()
    if not merges or any(len(merge) != 2 for merge in merges):
        raise InvalidError(f"{path}: lines of two symbols were expected, after a first line with the version.")
    return merges


class _Fast(Bpe):
    """CLIP's tokenizer with open_clip's spelling of special tokens: plain texts from the cache, others by ``full``."""

    def __init__(self, full: SimpleTokenizer) -> None:
        super().__init__()
        self._full = full

    def packed_without_cache(self, text: str) -> bytes:
        return array("I", self._full.full_ids(text)).tobytes()


class SimpleTokenizer:
    """CLIP's tokenizer. ``clean`` lower, whitespace or canonicalize; ``reduction_mask`` simple, random, shuffle or syntax.

    ``additional_special_tokens`` get the ids after CLIP's own and are matched as they are spelled, whatever the case.
    """

    def __init__(
        self,
        bpe_path: str = default_bpe(),
        additional_special_tokens: list[str] | None = None,
        context_length: int | None = DEFAULT_CONTEXT_LENGTH,
        clean: str = "lower",
        reduction_mask: str = "",
    ) -> None:
        special = [*SPECIAL, *(additional_special_tokens or [])]
        merges = _read_merges(str(bpe_path))
        self.byte_encoder = dict(bytes_to_unicode())
        self.byte_decoder = {symbol: byte for byte, symbol in self.byte_encoder.items()}
        symbols = list(self.byte_encoder.values())
        vocab = [*symbols, *(symbol + WORD_END for symbol in symbols), *map("".join, merges), *special]
        self.encoder = {token: number for number, token in enumerate(vocab)}
        self.decoder = {number: token for token, number in self.encoder.items()}
        self.bpe_ranks: dict[Any, int] = {merge: rank for rank, merge in enumerate(merges)}
        self.cache = {token: token for token in special}
        # Special tokens are spelled out, so that one such as "<|mask|>" is no pattern of its own.
        self.pat = regex.compile("|".join([*map(regex.escape, special), PIECES]), regex.IGNORECASE)
        self.vocab_size = len(self.encoder)
        self.all_special_ids = [self.encoder[token] for token in special]
        self.sot_token_id, self.eot_token_id = self.all_special_ids[:2]
        self.context_length = context_length
        self.clean_fn = get_clean_fn(clean)
        self.reduction_fn = get_reduction_mask_fn(reduction_mask) if reduction_mask else None
        self._fast = _Fast(self) if not additional_special_tokens and Path(bpe_path) == MERGES else None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_fast": None, "_has_fast": self._fast is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        has_fast = state.pop("_has_fast")
        vars(self).update(state)
        self._fast = _Fast(self) if has_fast else None

    def bpe(self, token: str) -> str:
        """The tokens of one word, which is written in ``byte_encoder``'s characters, with spaces between them."""
        if token not in self.cache:
            if len(self.cache) > CACHE_LIMIT:
                self.cache = {special: special for special in map(self.decoder.__getitem__, self.all_special_ids)}
            self.cache[token] = " ".join(merged([*token[:-1], token[-1] + WORD_END], self.bpe_ranks))
        return self.cache[token]

    def full_ids(self, text: str) -> list[int]:
        """``encode`` of any text, step by step: the reference implementation of the fast form."""
        ids: list[int] = []
        for piece in self.pat.findall(self.clean_fn(text)):
            symbols = "".join(map(self.byte_encoder.__getitem__, piece.encode("utf-8")))
            ids += map(self.encoder.__getitem__, self.bpe(symbols).split(" "))
        return ids

    def _engine(self) -> _Fast | None:
        return self._fast if self.clean_fn is clean_lower else None

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end, however long."""
        engine = self._engine()
        if not isinstance(text, str):
            raise NotTextError(f"{type(text).__name__} was given; expected a string.")
        return self.full_ids(text) if engine is None else engine.tokens(text)

    def decode(self, tokens: Iterable[Any]) -> str:
        """The text of ids, special tokens spelled out, a space after each word. Raises ConfigError for unknown ids."""
        numbers = [int(token) for token in tokens]
        unknown = [number for number in numbers if number not in self.decoder]
        if unknown:
            raise InvalidError(f"id {unknown[0]} was given; the vocabulary has ids from 0 to {self.vocab_size - 1}.")
        symbols = "".join(map(self.decoder.__getitem__, numbers))
        spelled = bytes(self.byte_decoder[symbol] for symbol in symbols)
        return spelled.decode("utf-8", errors="replace").replace(WORD_END, " ")

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        """int64 [texts, context_length]: start, the text, end, zeros; what is too long is truncated, or reduced by the mask."""
        strings, length = _strings(texts), context_length or self.context_length
        if not length or length < 1:
            raise InvalidError(f"a context_length of {length} was given; expected at least 1.")
        if self.reduction_fn is not None:
            ends = {"sot_token_id": self.sot_token_id, "eot_token_id": self.eot_token_id}
            return self.reduction_fn(strings, context_length=length, encode_fn=self.encode, **ends)  # type: ignore[no-any-return]
        engine = self._engine()
        if engine is not None and length >= 3 and type(self).encode is SimpleTokenizer.encode:
            return engine(strings, length)
        return rows([self.encode(text) for text in strings], length, self.sot_token_id, self.eot_token_id)


class NotTextError(ConfigError, TypeError):
    """What is no text was given where one was expected."""


def _strings(texts: Any) -> list[str]:
    if not isinstance(texts, Iterable):
        raise NotTextError(f"{type(texts).__name__} was given; expected a string, or a list of strings.")
    strings = [texts] if isinstance(texts, str) else list(texts)
    for text in strings:
        if not isinstance(text, str):
            raise NotTextError(
                f"{type(text).__name__} was given among the texts; expected a string, or a list of strings."
            )
    return strings


@cache
def _default() -> SimpleTokenizer:
    return SimpleTokenizer()


def __getattr__(name: str) -> Any:
    if name == "_tokenizer":  # of open_clip, which programs read
        return _default()
    raise AttributeError(f"module {__name__} has no attribute {name!r}")


def decode(output_ids: Tensor) -> str:
    """The text of one row of ids, by CLIP's vocabulary."""
    return _default().decode(output_ids.tolist())


def tokenize(texts: str | list[str], context_length: int = DEFAULT_CONTEXT_LENGTH) -> Tensor:
    """CLIP's ids of one or several texts, int64 [texts, context_length]."""
    return _default()(texts, context_length=context_length)
