"""Shortening texts that do not fit by leaving tokens out (Li et al. 2023, CLIPA), in place of their end; open_clip's names.

Chance comes from torch's and Python's global generators, as in open_clip: the same seeds give the same tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.open_clip._errors import InvalidError, MissingPackageError

Encode = Callable[[str], list[int]]


def rows(tokens: Sequence[Sequence[int]], length: int, start: int, end: int) -> Tensor:
    """Start, tokens, end, zeros: int64 [texts, length]. What is too long keeps its beginning, and the end token last."""
    if length < 1:
        raise InvalidError(f"a context_length of {length} was given; expected at least 1.")
    result = np.zeros((len(tokens), length), dtype=np.int64)
    for row, ids in zip(result, tokens, strict=True):
        whole = [start, *ids, end][:length]
        row[: len(whole)] = whole
        row[len(whole) - 1] = end
    return torch.from_numpy(result)


def _all(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def random_mask_tokenize(
    texts: str | Sequence[str],
    context_length: int,
    sot_token_id: int,
    eot_token_id: int,
    encode_fn: Encode,
    shuffle: bool = False,
) -> Tensor:
    """Of a text that does not fit, random tokens: in their order, or with ``shuffle`` in any; int64 [texts, context_length]."""
    some = []
    for text in _all(texts):
        tokens = encode_fn(text)
        if len(tokens) > context_length - 2:
            chosen = torch.randperm(len(tokens))[: context_length - 2].tolist()
            tokens = [tokens[index] for index in (chosen if shuffle else sorted(chosen))]
        some.append(tokens)
    return rows(some, context_length, sot_token_id, eot_token_id)


def simple_mask_tokenize(
    texts: str | Sequence[str], context_length: int, sot_token_id: int, eot_token_id: int, encode_fn: Encode
) -> Tensor:
    """Of a text that does not fit, neighboring tokens from a random one on; int64 [texts, context_length]."""
    some, fitting = [], context_length - 2
    for text in _all(texts):
        tokens = encode_fn(text)
        if len(tokens) > fitting:
            start = random.randint(0, len(tokens) - fitting)
            tokens = tokens[start : start + fitting]
        some.append(tokens)
    return rows(some, context_length, sot_token_id, eot_token_id)


def syntax_mask_tokenize(
    texts: str | Sequence[str], context_length: int, sot_token_id: int, eot_token_id: int, encode_fn: Encode
) -> Tensor:
    """Of a text that does not fit, nouns first, then adjectives, verbs, others, in their order; needs nltk and its taggers."""
    nltk = _nltk()
    some = []
    for text in _all(texts):
        vocab = nltk.tokenize.word_tokenize(text)
        order = np.argsort(np.array([_rank(tag) for _, tag in nltk.pos_tag(vocab)]))
        chosen = sorted(order[: context_length - 2].tolist())
        some.append(encode_fn(" ".join(vocab[index] for index in chosen)))
    return rows(some, context_length, sot_token_id, eot_token_id)


def _rank(tag: str) -> int:
    ranks = {"NN": 1, "JJ": 2, "VB": 3}
    return ranks.get(tag[:2], 4)


@cache
def _nltk() -> ModuleType:
    try:
        import nltk
    except ImportError as error:
        raise MissingPackageError(
            "the reduction mask 'syntax' needs the package nltk; install it: pip install nltk"
        ) from error
    for name in ("punkt", "averaged_perceptron_tagger"):
        nltk.download(name)
    return nltk  # type: ignore[no-any-return]


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "simple": simple_mask_tokenize,
    "random": random_mask_tokenize,
    "shuffle": partial(random_mask_tokenize, shuffle=True),
    "syntax": syntax_mask_tokenize,
}


def get_reduction_mask_fn(type: str) -> Callable[..., Any]:
    """The function called simple, random, shuffle or syntax. Raises ConfigError for others."""
    if type not in REDUCTIONS:
        raise InvalidError(f"reduction_mask {type!r} was given; expected one of {', '.join(REDUCTIONS)}.")
    return REDUCTIONS[type]
