"""Text to ids: tokenizers, one per file; and what is done to a caption before and after: views by name, masked tokens, plans.

Nothing here knows a model: which tokenizer belongs to which weights is what ``weights`` knows.
"""

from __future__ import annotations

from diptych.text._base import TOKENIZERS, Tokenized, Tokenizer, get_tokenizer, texts_of
from diptych.text._layout import (
    FORMS,
    TextLayout,
    bucket_ends,
    check_lengths,
    choose_buckets,
    default_buckets,
    parse_buckets,
    plan_buckets,
    plan_groups,
    plan_packed,
)
from diptych.text._masking import mask_tokens
from diptych.text._merges import byte_symbols, merged
from diptych.text._synonyms import Thesaurus
from diptych.text._views import VIEWS, TextView, TextViewOptions
from diptych.types import TextForm

__all__ = [
    "FORMS",
    "TOKENIZERS",
    "VIEWS",
    "TextForm",
    "TextLayout",
    "TextView",
    "TextViewOptions",
    "Thesaurus",
    "Tokenized",
    "Tokenizer",
    "bucket_ends",
    "byte_symbols",
    "check_lengths",
    "choose_buckets",
    "default_buckets",
    "get_tokenizer",
    "mask_tokens",
    "merged",
    "parse_buckets",
    "plan_buckets",
    "plan_groups",
    "plan_packed",
    "texts_of",
]
