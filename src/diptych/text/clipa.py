"""CLIPA's tokenizer (Li et al. 2023): BERT's 30,522 lower-cased word pieces, texts of 32, padded with 0.

[CLS] stands first; BERT's separator, which would stand last, is taken out, as these towers were trained. The vocabulary comes
with the weights (``tokenizer.json`` or ``vocab.txt``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diptych.errors import WeightsError
from diptych.text import TOKENIZERS, Tokenized
from diptych.text._clean import mended
from diptych.text._pieces import WholeContext

CLASS, SEPARATOR = "[CLS]", "[SEP]"


@TOKENIZERS.register("clipa")
class Clipa(WholeContext):
    """BERT's words."""

    name = "clipa"
    end_id = 0
    pad_id = 0
    vocabulary_files = ("tokenizer.json", "vocab.txt")

    def __init__(self, context_length: int, vocabulary: Path) -> None:
        super().__init__(context_length, vocabulary)
        first = self._encode(CLASS)
        if len(first) != 1:
            raise WeightsError(f"{vocabulary}: no vocabulary of BERT: {CLASS} is no word of it.")
        self.start_id = first[0]

    def cleaned(self, text: str) -> str:
        """Mojibake mended, white space folded; the word pieces lower-case by themselves."""
        return mended(text)

    def encode(self, text: str) -> Tokenized:
        """[CLS], the text's word pieces, padding: always ``context_length`` ids; room is left for the separator."""
        found = np.frombuffer(self.packed(text), dtype=np.uint32)
        kept = found[: self.context_length - 2]
        ids = np.zeros(self.context_length, dtype=np.int64)
        ids[0], ids[1 : 1 + len(kept)] = self.start_id, kept
        return Tokenized(ids, len(found) - len(kept), len(kept) + 1)

    def decode(self, ids: Any) -> str:
        """The text of the ids, without [CLS] and padding."""
        return self._decode([int(one) for one in ids if int(one) not in (self.start_id, self.pad_id)])
