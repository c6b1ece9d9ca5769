"""Text to ids: tokenizers, one per file; and what is done to a caption before and after: views by name, masked tokens.

Nothing here knows a model: which tokenizer belongs to which weights is what ``weights`` knows.
"""

from __future__ import annotations

from diptych.text._base import TOKENIZERS, Tokenized, Tokenizer, get_tokenizer, texts_of
from diptych.text._masking import mask_tokens
from diptych.text._merges import byte_symbols, merged
from diptych.text._synonyms import Thesaurus
from diptych.text._views import VIEWS, TextView, TextViewOptions

__all__ = [
    "TOKENIZERS",
    "VIEWS",
    "TextView",
    "TextViewOptions",
    "Thesaurus",
    "Tokenized",
    "Tokenizer",
    "byte_symbols",
    "get_tokenizer",
    "mask_tokens",
    "merged",
    "texts_of",
]
