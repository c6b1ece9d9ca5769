"""The zero-shot classifier: one vector per class from prompts, built fast and kept.

A class's vector is the normalised mean of its prompts' normalised features (CLIP, 2021, section 3.1). Padding is not computed,
and the words that a template's prompts share before the class name are computed once (``models/_sharing``); both are exact. A
built classifier is kept in the cache folder under a hash of the text tower's weights and of every prompt's ids, so another
model, name, template or tokenizer never meets a stale one. It classifies nothing itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from diptych.errors import ConfigError
from diptych.evaluate._cache import add_weights, keep_tensor, kept
from diptych.evaluate._encode import Encoder
from diptych.evaluate._prompts import fill
from diptych.files import cache_folder

TOKENS_AT_ONCE = 1 << 13  # enough to fill a processor; the widest activation stays near its caches
FORM = "classifier 1"


class Prompts(NamedTuple):
    """The prompts of one template for every class: id arrays, and how many first ids all of them share."""

    ids: list[np.ndarray]
    stem: int


def build_classifier(
    encoder: Encoder, names: Sequence[str], templates: Sequence[str], step: Callable[[int], None], keep: bool = True
) -> Tensor:
    """Return unit vectors fp32 [classes, D] on the encoder's device.

    ``step`` hears how many prompts were done each time; with ``keep`` the cache folder is asked first, and filled.
    Raises ConfigError when there is no name or no template.
    """
    if not names or not templates:
        raise ConfigError(f"{len(names)} class names and {len(templates)} templates: a classifier needs both.")
    prompts = [_prompts(encoder.tokenizer, template, names) for template in templates]
    path = None
    if keep and not encoder.shared:  # processes may not agree on what is in their caches
        path = cache_folder() / "classifiers" / f"{_fingerprint(encoder, prompts)}.safetensors"
        found = kept(path, "vectors", len(names))
        if found is not None:
            step(len(names) * len(templates))
            return found.to(encoder.device.torch_device)
    vectors = encoder.together(
        len(names),
        lambda mine: _built(encoder, _of(prompts, mine), len(mine), step),
        lambda others: step(others * len(templates)),
    )
    if path is not None:
        keep_tensor(path, "vectors", vectors)
    return vectors


def _prompts(tokenizer: Any, template: str, names: Sequence[str]) -> Prompts:
    ids = [tokenizer.encode(fill(template, name)).ids for name in names]
    longest = min(map(len, ids)) - 1
    begin = np.stack([row[:longest] for row in ids])
    differs = np.flatnonzero((begin != begin[0]).any(axis=0))
    return Prompts(ids, int(differs[0]) if len(differs) else longest)


def _of(prompts: Sequence[Prompts], classes: range) -> list[Prompts]:
    return [Prompts([one.ids[place] for place in classes], one.stem) for one in prompts]


def _built(encoder: Encoder, prompts: Sequence[Prompts], classes: int, step: Callable[[int], None]) -> Tensor:
    """The mean over templates, by as many prompts at a time as hold ``TOKENS_AT_ONCE``."""
    place = encoder.device.torch_device
    total: Tensor | None = None
    with encoder.inference():
        for piece in _pieces(prompts, classes):
            features = functional.normalize(_features(encoder, piece).float(), dim=-1)
            if total is None:
                total = torch.zeros(classes, features.shape[1], device=place)
            owner = torch.tensor([name for _, begin, ids in piece for name in range(begin, begin + len(ids))])
            total.index_add_(0, owner.to(place), features)
            step(len(owner))
    assert total is not None
    return functional.normalize(total / len(prompts), dim=-1)


Piece = list[
    tuple[int, int, list[np.ndarray]]
]  # shared ids, the first class, and the ids of some classes, for one template


def _pieces(prompts: Sequence[Prompts], classes: int) -> Iterator[Piece]:
    held: Piece = []
    tokens = 0
    for one in prompts:
        mean = max(1, sum(map(len, one.ids)) // classes - one.stem)
        many = max(1, TOKENS_AT_ONCE // mean)
        for begin in range(0, classes, many):
            ids = one.ids[begin : begin + many]
            size = mean * len(ids)
            if held and tokens + size > TOKENS_AT_ONCE:
                yield held
                held, tokens = [], 0
            held.append((one.stem, begin, ids))
            tokens += size
    if held:
        yield held


def _features(encoder: Encoder, piece: Piece) -> Tensor:
    """Features of the prompts of a piece, template by template."""
    tokens, lengths = encoder.tokenizer.pad([row for _, _, ids in piece for row in ids])
    place = encoder.device.torch_device
    branched = getattr(getattr(encoder.model, "text", None), "branched", None)
    if branched is None:  # a tower in which every token sees every other shares nothing
        return encoder.model.encode_text(tokens.to(place))  # type: ignore[operator]
    counts = torch.tensor([len(ids) for _, _, ids in piece])
    stem = torch.arange(len(piece)).repeat_interleave(counts)
    shared = torch.tensor([size for size, _, _ in piece]).repeat_interleave(counts)
    return branched(tokens.to(place), lengths.to(place), stem, shared)


def _fingerprint(encoder: Encoder, prompts: Sequence[Prompts]) -> str:
    """A hash of all that the vectors depend on: form, precision, weights of the text tower, and ids of every prompt."""
    digest = hashlib.sha256(f"{FORM} {encoder.precision}".encode())
    add_weights(digest, getattr(encoder.model, "text", encoder.model))
    for one in prompts:
        for row in one.ids:
            digest.update(len(row).to_bytes(4, "little") + row.tobytes())
    return digest.hexdigest()[:40]
