"""SigLIP 2's tokenizer (Tschannen et al. 2025): Gemma's 256,000 tokens, lower-cased, texts of 64, padded with 0.

Punctuation stays, as in the reference; open_clip takes it off. The vocabulary comes with the weights (``tokenizer.json``).
"""

from __future__ import annotations

from diptych.text._base import TOKENIZERS
from diptych.text._pieces import WholeContext


@TOKENIZERS.register("siglip2")
class Siglip2(WholeContext):
    """SigLIP 2's tokenizer."""

    name = "siglip2"
    end_id = 1
    pad_id = 0
    mask_token = "<mask>"
    vocabulary_files = ("tokenizer.json", "tokenizer.model")

    def cleaned(self, text: str) -> str:
        """Lower case; nothing else."""
        return text.lower()
