"""Whole-context tokenizers over a vocabulary file: SigLIP's contract, shared by its two generations.

No start token; the end token follows the text's; what is left of the context is padding, which these towers read, so every
row has the full length. The engines are the ``sentencepiece`` and ``tokenizers`` libraries, whichever the file is for.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.errors import ConfigError, WeightsError
from diptych.text._base import Tokenized, Tokenizer, ids_of, texts_of


class Engine(NamedTuple):
    """A vocabulary's library: a text's ids; ids' text; the number of tokens; those that stand for no piece of a text."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    vocab_size: int
    special: frozenset[int]


class WholeContext(Tokenizer):
    """The text's tokens, the end token, padding up to the context; a text that is too long keeps its beginning and the end.

    ``mask_token`` is the mask's spelling; ``mask_id`` stays None where the vocabulary lacks it.
    """

    needs_vocabulary = True
    vocabulary_files: tuple[str, ...] = ("tokenizer.json", "spiece.model")
    start_id = -1
    mask_token = ""

    def __init__(self, context_length: int, vocabulary: Path) -> None:
        super().__init__(context_length)
        self.vocabulary = vocabulary
        self._engine = engine(vocabulary)
        self.vocab_size = self._engine.vocab_size
        self.mask_id = self.special_id(self.mask_token)

    def special_id(self, token: str) -> int | None:
        """The id of a token that the vocabulary marks as special; None where it has none so spelled."""
        ids = self._engine.encode(token)
        return ids[0] if len(ids) == 1 and ids[0] in self._engine.special else None

    def special_ids(self) -> frozenset[int]:
        """Start, end, padding and mask, and what the vocabulary itself marks as no piece of a text."""
        return super().special_ids() | self._engine.special

    def __getstate__(self) -> dict[str, object]:
        """A worker process opens the vocabulary itself."""
        return {"context_length": self.context_length, "vocabulary": self.vocabulary}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["context_length"], state["vocabulary"])  # type: ignore[misc]

    def cleaned(self, text: str) -> str:
        """What is done to a text before it is split into tokens."""
        raise NotImplementedError

    def packed(self, text: str) -> bytes:
        """The ids of a text, without the end, as native 32-bit integers."""
        return array("I", self._engine.encode(self.cleaned(text))).tobytes()

    def encode(self, text: str) -> Tokenized:
        """The text's tokens, the end, padding: always ``context_length`` ids."""
        tokens = np.frombuffer(self.packed(text), dtype=np.uint32)
        fitting = tokens[: self.context_length - 1]
        ids = np.full(self.context_length, self.pad_id, dtype=np.int64)
        ids[: len(fitting)], ids[len(fitting)] = fitting, self.end_id
        return Tokenized(ids, len(tokens) - len(fitting), len(fitting) + 1)

    def __call__(self, texts: str | Iterable[str], context_length: int | None = None) -> Tensor:
        """ids int64 [n, context_length]; another length than the model's own would change its features.

        No text gives int64 [0, context_length]. Raises ConfigError for another length, and for what is no text.
        """
        if context_length not in (None, self.context_length):
            raise ConfigError(f"{self.name} texts are {self.context_length} tokens long, not {context_length}.")
        rows = [self.encode(text).ids for text in texts_of(texts)]
        return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, self.context_length, dtype=torch.int64)

    def decode(self, ids: Sequence[int] | np.ndarray | Tensor) -> str:
        """The text of ids up to the end token."""
        text = ids_of(ids, self.vocab_size)
        return self._engine.decode(text[: text.index(self.end_id)] if self.end_id in text else text)


def engine(path: Path) -> Engine:
    """The library that reads this vocabulary. Raises ConfigError when it is not installed, WeightsError for a bad file."""
    try:
        readers = {".model": _sentencepiece, ".txt": _word_pieces}
        return readers.get(path.suffix, _tokenizers)(path)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{path.name} is read with the package {error.name!r}; install it: pip install {error.name}"
        ) from error


def _sentencepiece(path: Path) -> Engine:
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{path}: not a vocabulary of sentencepiece ({error}).") from error
    size = model.get_piece_size()
    special = frozenset(number for number in range(size) if model.is_control(number) or model.is_unknown(number))
    return Engine(model.encode, model.decode, size, special)


def _tokenizers(path: Path) -> Engine:
    import tokenizers

    return _of_library(path, lambda: tokenizers.Tokenizer.from_file(str(path)))


def _word_pieces(path: Path) -> Engine:
    import tokenizers

    return _of_library(path, lambda: tokenizers.BertWordPieceTokenizer.from_file(str(path), lowercase=True))


def _of_library(path: Path, read: Callable[[], Any]) -> Engine:
    try:
        tokenizer = read()
    # The library raises Exception itself, and nothing narrower.
    except Exception as error:
        raise WeightsError(f"{path}: not a vocabulary of tokenizers ({error}).") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = frozenset(number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    return Engine(
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        tokenizer.decode,
        tokenizer.get_vocab_size(),
        special,
    )
