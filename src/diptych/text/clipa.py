"""CLIPA's tokenizer (Li et al. 2023): BERT's 30,522 lower-cased word pieces, texts of 32, padded with 0.

[CLS] is the first id; BERT's separator, which would stand last, is taken out, as these towers were trained. The vocabulary comes
with the weights (``tokenizer.json`` or ``vocab.txt``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from diptych.errors import WeightsError
from diptych.text._base import TOKENIZERS, Tokenized, ids_of
from diptych.text._clean import fix_text
from diptych.text._pieces import WholeContext

CLASS, MASK = "[CLS]", "[MASK]"


@TOKENIZERS.register("clipa")
class Clipa(WholeContext):
    """BERT's word pieces."""

    name = "clipa"
    end_id = 0
    pad_id = 0
    mask_token = MASK
    vocabulary_files = ("tokenizer.json", "vocab.txt")

    def __init__(self, context_length: int, vocabulary: Path) -> None:
        super().__init__(context_length, vocabulary)
        start = self._engine.encode(CLASS)
        if len(start) != 1:
            raise WeightsError(f"{vocabulary}: no vocabulary of BERT: {CLASS} is no token of it.")
        self.start_id = start[0]

    def cleaned(self, text: str) -> str:
        """Mojibake fixed, white space folded; the word pieces lower-case by themselves."""
        return fix_text(text)

    def encode(self, text: str) -> Tokenized:
        """[CLS], the text's word pieces, padding: always ``context_length`` ids, the last of which is never a word piece."""
        tokens = np.frombuffer(self.packed(text), dtype=np.uint32)
        fitting = tokens[: self.context_length - 2]
        ids = np.zeros(self.context_length, dtype=np.int64)
        ids[0], ids[1 : 1 + len(fitting)] = self.start_id, fitting
        return Tokenized(ids, len(tokens) - len(fitting), len(fitting) + 1)

    def length_of(self, ids: np.ndarray) -> int:
        """[CLS] and the word pieces: nothing ends a text but padding."""
        return max(1, super().length_of(ids) - int((ids == self.end_id).any()))

    def decode(self, ids: Sequence[int] | np.ndarray | Tensor) -> str:
        """The text of the ids, without [CLS] and padding."""
        skipped = (self.start_id, self.pad_id)
        return self._engine.decode([number for number in ids_of(ids, self.vocab_size) if number not in skipped])
