"""Words to ids: the tokenizer contract, one tokenizer per file.

A tokenizer says what it cut off; padding is for callers that want a rectangle. Nothing here knows a model: which tokenizer
belongs to which weights is the weights room's knowledge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.errors import ConfigError
from diptych.registry import Registry


class Tokenized(NamedTuple):
    """``ids`` int64 [L], start and end included, unpadded; ``num_truncated`` tokens did not fit; ``length`` counts the ids up
    to and including the first end token, wherever it stands: what a causal tower pools."""

    ids: np.ndarray
    num_truncated: int
    length: int


class Tokenizer:
    """The contract. A tokenizer gives the attributes, ``packed`` and ``decode``; the rest follows.

    ``pad_id`` fills rectangles; ``end_id`` is the largest id of any caption, so that its first place can be found by argmax.
    """

    name: str
    vocab_size: int
    start_id: int
    end_id: int
    pad_id: int = 0

    def __init__(self, context_length: int) -> None:
        if context_length < 3:
            raise ConfigError(
                f"a context of {context_length} tokens holds no word between start and end; give at least 3."
            )
        self.context_length = context_length

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
        found = np.frombuffer(self.packed(text), dtype=np.uint32)
        kept = found[: self.context_length - 2]
        ids = np.empty(len(kept) + 2, dtype=np.int64)
        ids[0], ids[1:-1], ids[-1] = self.start_id, kept, self.end_id
        return Tokenized(ids, len(found) - len(kept), int((ids == self.end_id).argmax()) + 1)

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """ids int64 [n, context_length] of one or several texts, padded at the end, as open_clip's tokenizers give them."""
        length = context_length or self.context_length
        room = 4 * (length - 2)
        rows = [ids[:room] for ids in self.packed_all([texts] if isinstance(texts, str) else texts)]
        counts = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)) // 4
        filled = np.full((len(rows), length), self.pad_id, dtype=np.int64)
        place = np.arange(length)
        filled[(place > 0) & (place <= counts[:, None])] = np.frombuffer(b"".join(rows), dtype=np.uint32)
        filled[:, 0] = self.start_id
        filled[np.arange(len(rows)), counts + 1] = self.end_id
        return torch.from_numpy(filled)

    def pad(self, rows: Sequence[np.ndarray], lengths: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """id arrays -> int64 [n, L] padded to the longest only, and how many ids of each are real up to its end, [n]."""
        lengths = [int(row.argmax()) + 1 for row in rows] if lengths is None else list(lengths)
        filled = np.full((len(rows), max(map(len, rows), default=0)), self.pad_id, dtype=np.int64)
        for place, row in enumerate(rows):
            filled[place, : len(row)] = row
        return torch.from_numpy(filled), torch.tensor(lengths, dtype=torch.int64)


TOKENIZERS: Registry[type[Tokenizer]] = Registry(__name__, "tokenizer")


def get_tokenizer(name: str = "bpe", context_length: int = 77, vocabulary: Path | None = None) -> Tokenizer:
    """The tokenizer called ``name`` (a file of this folder, or module:Class).

    ``vocabulary`` is the file with its words; "bpe" carries its own. Raises ConfigError for an unknown one, or when a
    vocabulary is needed and not given.
    """
    kind = TOKENIZERS.get(name)
    if vocabulary is not None:
        return kind(context_length, vocabulary)  # type: ignore[call-arg]
    if getattr(kind, "needs_vocabulary", False):
        raise ConfigError(
            f"the tokenizer {name!r} needs its vocabulary ({' or '.join(kind.vocabulary_files)}), which is not there; put it "  # type: ignore[attr-defined]
            "beside the weights (it comes with the Hugging Face folder of the model)."
        )
    return kind(context_length)


__all__ = ["TOKENIZERS", "Tokenized", "Tokenizer", "get_tokenizer"]
