"""The zero-shot classifier: one vector per class from prompts, built fast and cached.

A class's vector is the normalized mean of its prompts' normalized features (Radford et al. 2021, section 3.1). Padding is not
computed, and where the towers are in main memory the tokens that a template's prompts share before the class name are computed
once (``diptych.models.SharedPrefixes``); both are exact. A file of the cache folder is named by a hash of the text tower's
weights and of every prompt's ids, so another model, name, template or tokenizer never meets a stale one. It classifies nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from diptych.errors import ConfigError
from diptych.evaluate._cache import add_weights, read_tensor, write_tensor
from diptych.evaluate._class_names import say_equal_names
from diptych.evaluate._encode import Advance, Encoder
from diptych.evaluate._prompts import fill
from diptych.files import cache_folder
from diptych.models import SharedPrefixes
from diptych.text import Tokenized, Tokenizer, texts_of

TOKENS_AT_ONCE = 1 << 13  # enough to fill a processor; the widest activation stays near its caches
FORMAT = "classifier 1"


class Prompts(NamedTuple):
    """The prompts of one template: of each class the ids, how many first ids all of them share, and the mean of the others."""

    rows: list[Tokenized]
    prefix: int
    mean_rest: int


class Piece(NamedTuple):
    """Prompts of one template for the classes from ``begin`` on, which share ``prefix`` first ids."""

    rows: list[Tokenized]
    prefix: int
    begin: int


def build_classifier(encoder: Encoder, names: Sequence[str], templates: Sequence[str], advance: Advance) -> Tensor:
    """Return unit vectors fp32 [classes, D] on the encoder's device; ``advance`` counts prompts.

    Classes of one name get equal vectors, which is said.

    Raises ConfigError when there is no name or no template, and for what is no text.
    """
    names, templates = texts_of(names), texts_of(templates)
    if not names or not templates:
        raise ConfigError(f"{len(names)} class names and {len(templates)} templates: a classifier needs both.")
    say_equal_names(names)
    prompts = [_prompts(encoder.tokenizer, template, names) for template in templates]
    path = None
    if encoder.cache and not encoder.shared:  # processes may not agree on what is in their caches
        path = cache_folder() / "classifiers" / f"{_fingerprint(encoder, prompts)}.safetensors"
        cached = read_tensor(path, "vectors", len(names))
        if cached is not None:
            advance(len(names) * len(templates))
            return cached.to(encoder.device.torch_device)
    vectors = encoder.together(
        len(names), lambda classes, advance: _build(encoder, _of(prompts, classes), advance), advance, len(templates)
    )
    if path is not None:
        write_tensor(path, "vectors", vectors)
    return vectors


def _prompts(tokenizer: Tokenizer, template: str, names: Sequence[str]) -> Prompts:
    rows = [tokenizer.encode(fill(template, name)) for name in names]
    shortest = min(len(row.ids) for row in rows) - 1
    begin = np.stack([row.ids[:shortest] for row in rows])
    differs = np.flatnonzero((begin != begin[0]).any(axis=0))
    prefix = int(differs[0]) if len(differs) else shortest
    return Prompts(rows, prefix, max(1, sum(len(row.ids) for row in rows) // len(rows) - prefix))


def _of(prompts: Sequence[Prompts], classes: Sequence[int]) -> list[Prompts]:
    return [item._replace(rows=[item.rows[index] for index in classes]) for item in prompts]


def _build(encoder: Encoder, prompts: Sequence[Prompts], advance: Advance) -> Tensor:
    """The mean over templates, by as many prompts at a time as hold ``TOKENS_AT_ONCE``."""
    total: Tensor | None = None
    with encoder.inference():
        for pieces in _batches(prompts):
            features = functional.normalize(_features(encoder, pieces), dim=-1)
            if total is None:
                total = features.new_zeros(len(prompts[0].rows), features.shape[1])
            for piece, rows in zip(pieces, features.split([len(piece.rows) for piece in pieces]), strict=True):
                total[piece.begin : piece.begin + len(rows)] += rows
            advance(len(features))
    assert total is not None
    return functional.normalize(total / len(prompts), dim=-1)


def _batches(prompts: Sequence[Prompts]) -> Iterator[list[Piece]]:
    """Prompts to encode together. Sizes are by mean lengths over all classes, hence equal in processes with as many classes."""
    batch: list[Piece] = []
    tokens = 0
    for item in prompts:
        many = max(1, TOKENS_AT_ONCE // item.mean_rest)
        for begin in range(0, len(item.rows), many):
            piece = Piece(item.rows[begin : begin + many], item.prefix, begin)
            size = item.mean_rest * len(piece.rows)
            if batch and tokens + size > TOKENS_AT_ONCE:
                yield batch
                batch, tokens = [], 0
            batch.append(piece)
            tokens += size
    if batch:
        yield batch


def _features(encoder: Encoder, pieces: Sequence[Piece]) -> Tensor:
    """Features [B, D] of the prompts, piece by piece."""
    rows = [row for piece in pieces for row in piece.rows]
    tokens, lengths = encoder.tokenizer.pad([row.ids for row in rows], [row.length for row in rows])
    if not encoder.model.shares_prefixes:  # a tower in which every token sees every other
        return encoder.encode_text(tokens, lengths)
    counts = torch.tensor([len(piece.rows) for piece in pieces])
    group = torch.arange(len(pieces)).repeat_interleave(counts)
    length = torch.tensor([piece.prefix for piece in pieces]).repeat_interleave(counts)
    return encoder.encode_text(tokens, lengths, SharedPrefixes(group, length))


def _fingerprint(encoder: Encoder, prompts: Sequence[Prompts]) -> str:
    """A hash of all that the vectors depend on: format, precision, architecture, the text tower's weights, ids of prompts."""
    digest = hashlib.sha256(f"{FORMAT} {encoder.precision} {encoder.architecture}".encode())
    add_weights(digest, encoder.tower_state("text"))
    for item in prompts:
        for row in item.rows:
            digest.update(len(row.ids).to_bytes(4, "little") + row.ids.tobytes())
    return digest.hexdigest()[:40]
