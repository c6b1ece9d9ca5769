"""The tokenizer files beside weights: whether the vocabulary is OpenAI's or the model's own, and its special ids.

Reads JSON only, and makes no tokenizer. The vocabulary's size and the token embedding's must agree, and so must the end token of
the model's config and of its tokenizer: what disagrees is a WeightsError, never a guess.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from diptych.errors import WeightsError
from diptych.models import ModelConfig
from diptych.text.bpe import vocabulary as openai_vocabulary
from diptych.weights._config_table import read_json

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "vocab.txt", "spiece.model", "tokenizer.model",
)  # fmt: skip
OPENAI_SIZE = 49408
MOST_PADDING = 128  # rows of an embedding that was rounded up
SPELLED_START, SPELLED_END = ("<|startoftext|>", "<s>", "[CLS]", "<bos>"), ("<|endoftext|>", "</s>", "[SEP]", "<eos>")
ARGMAX_END = 2  # what the first releases of transformers wrote for "the largest id"


class TextIds(NamedTuple):
    """The name of a tokenizer, and its special ids (None: the tokenizer's own)."""

    tokenizer: str = "bpe"
    start_id: int | None = None
    end_id: int | None = None
    pad_id: int = 0


def check_size(where: object, size: int, rows: int) -> None:
    """Raise WeightsError unless a vocabulary of ``size`` tokens fits an embedding of ``rows``, which may be rounded up."""
    if not size <= rows < size + MOST_PADDING:
        raise WeightsError(
            f"{where}: a vocabulary of {size:,} tokens, but the model's token embedding has {rows:,} rows: they do not belong "
            "together; put the model's own tokenizer files beside its weights."
        )


def text_ids(folder: Path, config: Mapping[str, object], rows: int, where: object) -> TextIds:
    """The tokenizer of a causal CLIP in a folder; ``config`` has its bos_token_id, eos_token_id and pad_token_id.

    Raises WeightsError when the files beside the weights contradict each other or the model.
    """
    tokens, path = _tokens(folder)
    end = _number(config, "eos_token_id")
    if tokens is None:
        return _without_files(config, end, rows, where)
    check_size(path, max(tokens.values(), default=-1) + 1, rows)
    if tokens == dict(openai_vocabulary().ids):
        return TextIds()
    start_of_file, end_of_file, pad = _named(folder, tokens)
    if end_of_file is not None and end is not None and end not in (ARGMAX_END, end_of_file):
        raise WeightsError(
            f"{where}: its end token is {end}, but the tokenizer beside it ends texts with {end_of_file}; they do not belong "
            "together."
        )
    if end == ARGMAX_END:  # the largest id of a text is pooled then
        end = max(tokens.values())
        if end_of_file not in (None, end):
            raise WeightsError(
                f"{where}: pools the largest id (eos_token_id 2), but the tokenizer beside it ends texts with {end_of_file}."
            )
    end = end_of_file if end is None else end
    start = _number(config, "bos_token_id") if start_of_file is None else start_of_file
    if start is None or end is None:
        raise WeightsError(
            f"{path}: nothing says which tokens start and end a text; name them in tokenizer_config.json (bos_token, eos_token)."
        )
    return TextIds("own", start, end, pad if pad is not None and pad < rows else 0)


def with_vocabulary(config: ModelConfig, where: Path) -> ModelConfig:
    """The config of a model that pools the largest id, with the vocabulary beside ``where`` if that is its own."""
    text = config.text
    if text.family != "transformer" or _tokens(where.parent)[0] is None:
        return config
    ids = text_ids(where.parent, {"eos_token_id": ARGMAX_END}, text.vocab_size, where)
    return dataclasses.replace(config, text=dataclasses.replace(text, **ids._asdict()))


def _without_files(config: Mapping[str, object], end: int | None, rows: int, where: object) -> TextIds:
    if rows == OPENAI_SIZE:
        if end not in (None, ARGMAX_END, rows - 1):
            raise WeightsError(f"{where}: its end token {end} is not the last of a vocabulary of {rows}.")
        return TextIds()
    start = _number(config, "bos_token_id")
    # Legacy numbers mean nothing; the tokenizer itself is missing anyway, and says so when texts come.
    end = rows - 1 if end is None or end == ARGMAX_END else end
    return TextIds("own", rows - 2 if start is None else start, end)


def _number(config: Mapping[str, object], key: str) -> int | None:
    value = config.get(key)
    return value if type(value) is int else None


def _tokens(folder: Path) -> tuple[dict[str, int] | None, Path]:
    """Every token and its id, and the file; (None, folder) without one."""
    path = folder / "tokenizer.json"
    if path.is_file():
        return _of_library(path), path
    path = folder / "vocab.json"
    if not path.is_file():
        return None, folder
    values = {**read_json(path), **read_json(folder / "added_tokens.json")}
    return _checked({token: number for token, number in values.items()}, path), path  # noqa: C416 (object to int below)


def _of_library(path: Path) -> dict[str, int]:
    values = read_json(path)
    model, added = values.get("model"), values.get("added_tokens") or []
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list):  # Unigram: pieces with their scores, in order
        vocab = {piece[0]: number for number, piece in enumerate(vocab) if isinstance(piece, list) and piece}
    if not isinstance(vocab, dict) or not isinstance(added, list):
        raise WeightsError(f"{path}: not a tokenizer that can be read: it has no vocabulary.")
    extra = {item["content"]: item["id"] for item in added if isinstance(item, dict) and {"content", "id"} <= set(item)}
    return _checked({**vocab, **extra}, path)


def _checked(tokens: Mapping[object, object], path: Path) -> dict[str, int]:
    checked = {str(token): number for token, number in tokens.items() if type(number) is int and 0 <= number < 1 << 24}
    if not checked or len(checked) != len(tokens):
        raise WeightsError(f"{path}: not a vocabulary: its tokens do not have numbers.")
    return checked


def _named(folder: Path, tokens: Mapping[str, int]) -> tuple[int | None, int | None, int | None]:
    """The ids of the start, end and padding token, as the tokenizer's own files name them."""
    template = _template(folder / "tokenizer.json", tokens)
    settings = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}

    def named(key: str, spelled: tuple[str, ...] = ()) -> int | None:
        value = settings.get(key)
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str):
            if token not in tokens:
                raise WeightsError(f"{folder}: its {key} {token!r} is not in the vocabulary beside it.")
            return tokens[token]
        return next((tokens[token] for token in spelled if token in tokens), None)

    start, end = template or (None, None)
    start = named("bos_token", SPELLED_START) if start is None else start
    return start, named("eos_token", SPELLED_END) if end is None else end, named("pad_token")


def _template(path: Path, tokens: Mapping[str, int]) -> tuple[int, int] | None:
    """The first and last token that a tokenizer.json itself puts around a text; None when it puts none.

    Raises WeightsError for another pattern, which CLIP's text tower is not given here.
    """
    processor = read_json(path).get("post_processor")
    parts = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    for part in parts if isinstance(parts, list) else []:
        if not isinstance(part, dict):
            continue
        if isinstance(part.get("cls"), list) and isinstance(part.get("sep"), list):  # RoBERTa's and BERT's
            return int(part["cls"][1]), int(part["sep"][1])
        single = part.get("single")
        if part.get("type") == "TemplateProcessing" and isinstance(single, list) and len(single) > 1:
            names = [item.get("SpecialToken", {}).get("id") for item in single if isinstance(item, dict)]
            if len(names) != 3 or names[1] is not None or names[0] not in tokens or names[2] not in tokens:
                raise WeightsError(
                    f"{path}: its template is not a start token, the text and an end token, as CLIP's is."
                )
            return tokens[names[0]], tokens[names[2]]
    return None


def copy_vocabulary(vocabulary: Path | None, folder: Path) -> None:
    """Copy a vocabulary, and the files that belong to it beside it, into another folder; None copies nothing."""
    if vocabulary is None or vocabulary.parent.resolve() == folder.resolve():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (vocabulary.parent / name).is_file():
            shutil.copyfile(vocabulary.parent / name, folder / name)
