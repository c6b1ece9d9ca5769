"""open_clip's tokenizers over those of transformers, which must be installed for them: ``HFTokenizer`` and ``SigLipTokenizer``.

Diptych's own models need neither: their vocabularies are read by ``diptych.text``.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.errors import ConfigError
from diptych.open_clip._cleaning import clean_canonicalize, get_clean_fn
from diptych.open_clip._errors import InvalidError, MissingError

DEFAULT_CONTEXT_LENGTH = 77


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "this tokenizer needs the package transformers; install it: pip install transformers"
        ) from error
    return transformers


def _length(given: int | None, own: int | None) -> int:
    length = given or own
    if not length or length < 1:
        raise InvalidError(f"a context_length of {length} was given; expected at least 1.")
    return length


def _texts(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


class HFTokenizer:
    """A tokenizer of transformers, by name or folder; texts are padded to the context, and truncated.

    ``strip_sep_token`` replaces the separator by 0. ``tokenizer_mode`` "clips" puts the class token last, after the padding.
    """

    def __init__(
        self,
        tokenizer_name: str,
        context_length: int | None = DEFAULT_CONTEXT_LENGTH,
        clean: str = "whitespace",
        strip_sep_token: bool = False,
        language: str | None = None,
        cache_dir: str | None = None,
        tokenizer_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        if tokenizer_mode not in (None, "", "clips"):
            raise InvalidError(f"tokenizer_mode {tokenizer_mode!r} was given; expected None or 'clips'.")
        self.tokenizer_mode = tokenizer_mode or ""
        self.context_length, self.strip_sep_token = context_length, strip_sep_token
        self.clean_fn = get_clean_fn(clean)
        automatic = _transformers().AutoTokenizer
        try:
            self.tokenizer = automatic.from_pretrained(tokenizer_name, cache_dir=cache_dir, **kwargs)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise MissingError(f"{tokenizer_name}: transformers could not open this tokenizer ({reason}).") from error
        setter = getattr(self.tokenizer, "set_src_lang_special_tokens", None)
        if callable(setter):
            self.set_lang_fn = setter
        if language is not None:
            self.set_language(language)

    def save_pretrained(self, dest: str) -> None:
        """Write the tokenizer's files to the folder ``dest``."""
        self.tokenizer.save_pretrained(dest)

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        """int64 [texts, context_length]."""
        length = _length(context_length, self.context_length)
        cleaned = [self.clean_fn(text) for text in _texts(texts)]
        if self.tokenizer_mode == "clips":
            return self._class_token_last(cleaned, length)
        ids = _padded(self.tokenizer, cleaned, length)
        return ids.masked_fill(ids == self.tokenizer.sep_token_id, 0) if self.strip_sep_token else ids

    def set_language(self, src_lang: str) -> None:
        """Switch the language of a tokenizer that has several; a warning where it has not."""
        if hasattr(self, "set_lang_fn"):
            self.set_lang_fn(src_lang)
        else:
            warnings.warn(f"language {src_lang!r} was given; this tokenizer has no languages to set.", stacklevel=2)

    def _class_token_last(self, texts: list[str], length: int) -> Tensor:
        """Start, the text, end, padding, class token: CLIPS's order (Liu et al. 2024)."""
        special = self.tokenizer
        encoded = special(texts, add_special_tokens=False, padding=False, truncation=False).input_ids
        ids = np.full((len(encoded), length), special.pad_token_id, dtype=np.int64)
        for row, tokens in zip(ids, encoded, strict=True):
            whole = [special.bos_token_id, *tokens[: length - 3], special.eos_token_id]
            row[: len(whole)] = whole
        ids[:, -1] = special.cls_token_id
        return torch.from_numpy(ids)


def _padded(tokenizer: Any, texts: list[str], length: int) -> Tensor:
    options = {"max_length": length, "padding": "max_length", "truncation": True}
    return tokenizer(texts, return_tensors="pt", **options).input_ids  # type: ignore[no-any-return]


class SigLipTokenizer:
    """SigLIP's sentencepiece vocabularies through transformers: c4-en, mc4, gemma, or the path of a vocabulary's file."""

    VOCAB_FILES = {  # noqa: RUF012
        "c4-en": "http://storage.googleapis.com/t5-data/vocabs/cc_en.32000/sentencepiece.model",
        "mc4": "http://storage.googleapis.com/t5-data/vocabs/mc4.250000.100extra/sentencepiece.model",
        "gemma": "http://storage.googleapis.com/big_vision/gemma_tokenizer.model",
    }

    def __init__(self, tokenizer_name: str, context_length: int | None = 64) -> None:
        transformers, gemma = _transformers(), "gemma" in tokenizer_name
        if gemma:
            options = {"padding_side": "right", "add_bos_token": False, "add_eos_token": True}
            make = partial(transformers.GemmaTokenizerFast, **options)
        else:
            make = partial(transformers.T5TokenizerFast, extra_ids=0)
        if tokenizer_name in self.VOCAB_FILES:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "sentencepiece.model"
                path.write_bytes(_download(self.VOCAB_FILES[tokenizer_name]))
                self.tokenizer = _opened(make, str(path))
        else:
            self.tokenizer = _opened(make, tokenizer_name)
        self.tokenizer.pad_token_id = 0 if gemma else 1
        self.tokenizer.eos_token_id = 1
        self.context_length = context_length

    def save_pretrained(self, dest: str) -> None:
        """Write the tokenizer's files to the folder ``dest``."""
        self.tokenizer.save_pretrained(dest)

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        """int64 [texts, context_length]."""
        length = _length(context_length, self.context_length)
        return _padded(self.tokenizer, [clean_canonicalize(text) for text in _texts(texts)], length)


def _opened(make: Any, path: str) -> Any:
    try:
        return make(path, legacy=False)
    except (TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path}: this release of transformers cannot open the vocabulary ({reason}); Diptych's own tokenizer does:"
            " diptych.text.get_tokenizer('siglip', 64, PATH)."
        ) from error


def _download(address: str) -> bytes:
    try:
        import fsspec
    except ImportError as error:
        raise ConfigError(
            "a vocabulary is downloaded with the package fsspec; install it: pip install 'fsspec[http]'"
        ) from error
    with fsspec.open(address, "rb") as file:
        return file.read()  # type: ignore[no-any-return]
