"""The tokenizer contract, and the registry of tokenizers.

A tokenizer reports how many tokens it truncated, and where a text ends; padding is for callers that want a rectangle. This
file names no tokenizer, and knows no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.errors import ConfigError
from diptych.files import StrPath
from diptych.registry import Registry


class Tokenized(NamedTuple):
    """``ids`` int64 [L], start and end included, unpadded; ``num_truncated`` tokens did not fit; ``length`` counts the ids up
    to and including the first end token, wherever it stands: what a causal tower pools."""

    ids: np.ndarray
    num_truncated: int
    length: int


def check_context(length: int) -> None:
    """Raise ConfigError unless a word fits between start and end."""
    if length < 3:
        raise ConfigError(f"a context of {length} tokens holds no word between start and end; give at least 3.")


def texts_of(texts: str | Iterable[str]) -> list[str]:
    """One text or any iterable of them (list, generator, array of numpy) as a list. Raises ConfigError for what is no text."""
    if isinstance(texts, str):
        return [texts]
    single = isinstance(texts, bytes | Mapping) or getattr(texts, "ndim", 1) == 0
    if single or not isinstance(texts, Iterable):
        raise ConfigError(f"a {type(texts).__name__} was given; expected a text, or a list of texts.")
    given = list(texts)
    for number, text in enumerate(given):
        if not isinstance(text, str):
            hint = ": decode it" if isinstance(text, bytes) else ""
            raise ConfigError(f"text {number} of {len(given)} is a {type(text).__name__}; expected a str{hint}.")
    return given


def ids_of(ids: Sequence[int] | np.ndarray | Tensor, known: int) -> list[int]:
    """The ids of one text as a list. Raises ConfigError for several texts, and for ids outside of a vocabulary of ``known``."""
    try:
        given = np.asarray(ids.cpu() if isinstance(ids, Tensor) else list(ids))
    except (TypeError, ValueError) as error:  # rows of several lengths; nothing to go through
        raise ConfigError("ids that are no numbers were given; expected whole numbers of one text.") from error
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ConfigError(
            f"ids of shape {list(given.shape)} and type {given.dtype} were given; expected whole numbers of one text."
        )
    if given.size and (given.min() < 0 or given.max() >= known):
        raise ConfigError(f"ids from {given.min()} to {given.max()} were given; the vocabulary has {known:,}.")
    return given.tolist()


class Tokenizer:
    """The contract. A tokenizer gives the attributes, ``packed`` and ``decode``; the rest follows.

    ``pad_id`` fills rectangles; ``end_id`` ends a text; ``mask_id`` replaces masked tokens, None where the vocabulary has no
    such token. A tokenizer without a start token has ``start_id`` -1.
    """

    name: str
    vocab_size: int
    start_id: int
    end_id: int
    pad_id: int = 0
    mask_id: int | None = None

    def __init__(self, context_length: int) -> None:
        check_context(context_length)
        self.context_length = context_length

    def special_ids(self) -> frozenset[int]:
        """Ids that stand for no piece of a text: start, end, padding, mask."""
        ids = (self.start_id, self.end_id, self.pad_id, self.mask_id)
        return frozenset(number for number in ids if number is not None and number >= 0)

    def packed(self, text: str) -> bytes:
        """The ids of a text, without start and end, however long, as native 32-bit integers: bytes join faster than lists."""
        raise NotImplementedError

    def packed_all(self, texts: Sequence[str]) -> list[bytes]:
        """``packed`` of each text."""
        return [self.packed(text) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray | Tensor) -> str:
        """The text of ids; start, end and padding are left out."""
        raise NotImplementedError

    def tokens(self, text: str) -> list[int]:
        """The ids of a text, without start and end, however long."""
        return np.frombuffer(self.packed(text), dtype=np.uint32).tolist()

    def encode(self, text: str) -> Tokenized:
        """Start, the text's tokens, end; a text that is too long keeps its beginning and the end token."""
        tokens = np.frombuffer(self.packed(text), dtype=np.uint32)
        fitting = tokens[: self.context_length - 2]
        ids = np.empty(len(fitting) + 2, dtype=np.int64)
        ids[0], ids[1:-1], ids[-1] = self.start_id, fitting, self.end_id
        return Tokenized(ids, len(tokens) - len(fitting), self.length_of(ids))

    def length_of(self, ids: np.ndarray) -> int:
        """Ids up to and including the first end token; all of them where there is none."""
        ends = ids == self.end_id
        return int(ends.argmax()) + 1 if ends.any() else len(ids)

    def __call__(self, texts: str | Iterable[str], context_length: int | None = None) -> Tensor:
        """ids int64 [n, context_length] of one or several texts, padded at the end, as open_clip's tokenizers give them.

        No text gives int64 [0, context_length]. Raises ConfigError for what is no text, and for a context below 3.
        """
        length = self.context_length if context_length is None else context_length
        check_context(length)
        limit = 4 * (length - 2)
        rows = [ids[:limit] for ids in self.packed_all(texts_of(texts))]
        counts = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)) // 4
        padded = np.full((len(rows), length), self.pad_id, dtype=np.int64)
        position = np.arange(length)
        padded[(position > 0) & (position <= counts[:, None])] = np.frombuffer(b"".join(rows), dtype=np.uint32)
        padded[:, 0] = self.start_id
        padded[np.arange(len(rows)), counts + 1] = self.end_id
        return torch.from_numpy(padded)

    def pad(self, rows: Sequence[np.ndarray], lengths: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Id arrays -> int64 [n, L] padded to the longest only, and their lengths, int64 [n].

        ``lengths`` as ``encode`` gave them (``Tokenized.length``), which masking and augmentation carry; None counts them.
        Raises ConfigError unless there is one for each row, and none longer than its row.
        """
        if lengths is None:
            lengths = [self.length_of(row) for row in rows]
        elif len(lengths) != len(rows) or any(
            not 1 <= length <= len(row) for row, length in zip(rows, lengths, strict=True)
        ):
            raise ConfigError(
                f"lengths {list(lengths)[:8]} were given for {len(rows)} texts; expected one each, of 1 to the number of ids."
            )
        padded = np.full((len(rows), max(map(len, rows), default=0)), self.pad_id, dtype=np.int64)
        for index, row in enumerate(rows):
            padded[index, : len(row)] = row
        return torch.from_numpy(padded), torch.tensor(lengths, dtype=torch.int64)


TOKENIZERS: Registry[type[Tokenizer]] = Registry("diptych.text", "tokenizer")


def get_tokenizer(
    name: str = "bpe", context_length: int = 77, vocabulary: StrPath | None = None, **special: int
) -> Tokenizer:
    """The tokenizer called ``name`` (a file of this folder, or module:Class).

    ``vocabulary`` is the file with its tokens; "bpe" carries its own. ``special`` are the ids that a tokenizer takes by name
    ("own": start_id, end_id, pad_id). Raises ConfigError for an unknown one, or when a vocabulary is needed and not given.
    """
    entry = TOKENIZERS.get(name)
    if vocabulary is not None:
        return entry(context_length, Path(vocabulary), **special)  # type: ignore[call-arg]
    if getattr(entry, "needs_vocabulary", False):
        files = " or ".join(entry.vocabulary_files)  # type: ignore[attr-defined]
        raise ConfigError(
            f"the tokenizer {name!r} needs its vocabulary ({files}), which is not there; put it beside the weights (it comes"
            " with the Hugging Face folder of the model)."
        )
    return entry(context_length, **special)
