"""SigLIP's tokenizer (Zhai et al. 2023): sentencepiece, 32,000 pieces of c4-en, texts of 64.

A text is lower-cased and loses ASCII punctuation; white space folds. Padding is the end token again. The vocabulary comes
with the weights (``spiece.model`` or ``tokenizer.json``).
"""

from __future__ import annotations

import string

from diptych.text._base import TOKENIZERS
from diptych.text._pieces import WholeContext

NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@TOKENIZERS.register("siglip")
class Siglip(WholeContext):
    """SigLIP's tokenizer."""

    name = "siglip"
    end_id = 1
    pad_id = 1
    vocabulary_files = ("spiece.model", "tokenizer.json")

    def cleaned(self, text: str) -> str:
        """Lower case, no ASCII punctuation, single spaces, as big_vision canonicalizes."""
        return " ".join(text.lower().translate(NO_PUNCTUATION).split())
