"""What CLIP's tokenizers do to a text before they split it into words; lower case is each tokenizer's own affair."""

from __future__ import annotations

import html


def fix_text(text: str) -> str:
    """Fix mojibake, resolve HTML entities (twice, for doubly escaped ones) and fold white space."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
