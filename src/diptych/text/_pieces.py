"""Whole-context tokenizers over a vocabulary file: SigLIP's contract, shared by its two generations.

No start token; the end token follows the words; what is left of the context is padding, which these towers read, so every
row has the full length. The engines are the ``sentencepiece`` and ``tokenizers`` libraries, whichever the file is for.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.errors import ConfigError, WeightsError
from diptych.text import Tokenized, Tokenizer

# A text's ids; ids' text; the number of words.
Engine = tuple[Callable[[str], list[int]], Callable[[list[int]], str], int]


class WholeContext(Tokenizer):
    """Words, the end token, padding up to the context; a text that is too long keeps its beginning and the end token."""

    needs_vocabulary = True
    vocabulary_files: tuple[str, ...] = ("tokenizer.json", "spiece.model")
    start_id = -1

    def __init__(self, context_length: int, vocabulary: Path) -> None:
        super().__init__(context_length)
        self.vocabulary = vocabulary
        self._encode, self._decode, self.vocab_size = engine(vocabulary)

    def __getstate__(self) -> dict[str, object]:
        """A worker process opens the vocabulary itself."""
        return {"context_length": self.context_length, "vocabulary": self.vocabulary}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["context_length"], state["vocabulary"])  # type: ignore[misc]

    def cleaned(self, text: str) -> str:
        """What is done to a text before it is cut into words."""
        raise NotImplementedError

    def packed(self, text: str) -> bytes:
        """The ids of a text, without the end, as native 32-bit integers."""
        return array("I", self._encode(self.cleaned(text))).tobytes()

    def encode(self, text: str) -> Tokenized:
        """The text's tokens, the end, padding: always ``context_length`` ids."""
        found = np.frombuffer(self.packed(text), dtype=np.uint32)
        kept = found[: self.context_length - 1]
        ids = np.full(self.context_length, self.pad_id, dtype=np.int64)
        ids[: len(kept)], ids[len(kept)] = kept, self.end_id
        return Tokenized(ids, len(found) - len(kept), len(kept) + 1)

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """ids int64 [n, context_length]; another length than the model's own would change its features."""
        if context_length not in (None, self.context_length):
            raise ConfigError(f"{self.name} texts are {self.context_length} tokens long, not {context_length}.")
        rows = [self.encode(text).ids for text in ([texts] if isinstance(texts, str) else texts)]
        return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, self.context_length, dtype=torch.int64)

    def decode(self, ids: Sequence[int] | np.ndarray | Tensor) -> str:
        """The text of ids up to the end token."""
        kept: list[int] = []
        for one in ids:
            if int(one) == self.end_id:
                break
            kept.append(int(one))
        return self._decode(kept)


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
    return model.encode, model.decode, model.get_piece_size()


def _tokenizers(path: Path) -> Engine:
    import tokenizers

    return _of_library(path, lambda: tokenizers.Tokenizer.from_file(str(path)))


def _word_pieces(path: Path) -> Engine:
    import tokenizers

    return _of_library(path, lambda: tokenizers.BertWordPieceTokenizer.from_file(str(path), lowercase=True))


def _of_library(path: Path, read: Callable[[], Any]) -> Engine:
    try:
        found = read()
    # The library raises Exception itself, and nothing narrower.
    except Exception as error:
        raise WeightsError(f"{path}: not a vocabulary of tokenizers ({error}).") from error
    found.no_truncation()
    found.no_padding()
    return (lambda text: found.encode(text, add_special_tokens=False).ids), found.decode, found.get_vocab_size()
