"""The vocabulary of a model's own, beside its weights: ``tokenizer.json``, or ``vocab.json`` with ``merges.txt``.

CLIP's contract around any vocabulary: start token, the text's tokens, end token; a causal tower pools at the end token. Which ids
these are is said by the model's config. ``tokenizer.json`` is run by the ``tokenizers`` library, exactly as it stands;
``vocab.json`` by CLIP's own byte-pair encoding. Never OpenAI's ids: a vocabulary that cannot be read is an error.
"""

from __future__ import annotations

import importlib.util
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diptych.errors import ConfigError, WeightsError
from diptych.text._base import TOKENIZERS, Tokenizer, ids_of
from diptych.text._merges import END, START
from diptych.text._own_bpe import MERGES, VOCABULARY, is_own_bpe, own_bpe
from diptych.text._pieces import Engine, engine


def _engine_of(vocabulary: Path) -> Engine:
    """The engine of a file; without the library that reads it, that of the merges beside it, where there are any."""
    pair = vocabulary.with_name(VOCABULARY)
    library = importlib.util.find_spec("tokenizers") is not None
    if is_own_bpe(vocabulary) or (not library and pair.is_file() and pair.with_name(MERGES).is_file()):
        return own_bpe(pair)
    return engine(vocabulary)


@TOKENIZERS.register("own")
class Own(Tokenizer):
    """A vocabulary file and its special ids; those that are not given are looked up by CLIP's spelling."""

    name = "own"
    needs_vocabulary = True
    vocabulary_files = ("tokenizer.json", "vocab.json with merges.txt")

    def __init__(
        self,
        context_length: int,
        vocabulary: Path,
        start_id: int | None = None,
        end_id: int | None = None,
        pad_id: int = 0,
    ) -> None:
        super().__init__(context_length)
        self.vocabulary = vocabulary
        self._engine = _engine_of(vocabulary)
        self.vocab_size = self._engine.vocab_size
        self.start_id = self._special(START) if start_id is None else start_id
        self.end_id = self._special(END) if end_id is None else end_id
        self.pad_id = pad_id
        for number in (self.start_id, self.end_id, self.pad_id):
            if not 0 <= number < self.vocab_size:
                raise WeightsError(
                    f"{vocabulary}: the special id {number} is not in a vocabulary of {self.vocab_size:,}."
                )

    def _special(self, token: str) -> int:
        ids = self._engine.encode(token)
        if len(ids) != 1:
            raise ConfigError(
                f"{self.vocabulary}: has no token {token}, and nothing beside it says which tokens start and end a text; name "
                "them in tokenizer_config.json (bos_token, eos_token)."
            )
        return ids[0]

    def __getstate__(self) -> dict[str, object]:
        """A worker process opens the vocabulary itself."""
        names = ("context_length", "vocabulary", "start_id", "end_id", "pad_id")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def special_ids(self) -> frozenset[int]:
        """Start, end and padding, and what the vocabulary itself marks as no piece of a text."""
        return super().special_ids() | self._engine.special

    def packed(self, text: str) -> bytes:
        """The ids of a text, without start and end, as native 32-bit integers."""
        return array("I", self._engine.encode(text)).tobytes()

    def decode(self, ids: Sequence[int] | np.ndarray | Tensor) -> str:
        """The text of ids; start, end and padding are left out."""
        skipped = (self.start_id, self.end_id, self.pad_id)
        return self._engine.decode([number for number in ids_of(ids, self.vocab_size) if number not in skipped]).strip()
