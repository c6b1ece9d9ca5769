"""What CLIP's tokenizers do to a text before they cut it into words; lower case is each tokenizer's own affair."""

from __future__ import annotations

import html


def mended(text: str) -> str:
    """Mend mojibake, resolve HTML entities (twice, for doubly escaped ones) and fold white space."""
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
