"""Zero-shot scores by tokens (FILIP, Yao et al. 2022): each image token finds the word of a class that is most like it.

A class is a matrix of words: its prompts' mapped tokens, each of unit length, averaged position by position. The score of an
image and a class is the mean over image tokens of the largest product with a word of the class; it has no scale.

``masked``, ours: a position is averaged over the prompts that have a real token there, and normalized by itself, so that long
names score as short ones do. ``published``, the code of the DeCLIP benchmark: prompts padded to the whole context, padding
taken for words, the whole matrix divided by its Frobenius norm. Maps come from ``_token_maps``. Retrieval is not scored so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.evaluate._encode import Encoder
from diptych.evaluate._prompts import fill
from diptych.evaluate._token_maps import TokenMaps, read_token_maps
from diptych.models import TwoTower

TokenRule = Literal["masked", "published"]
SIMILARITIES = 1 << 24  # held at once


class ClassTokens(NamedTuple):
    """``tokens`` fp32 [C, P, E] of each class, and ``real`` bool [C, P], where there is one."""

    tokens: Tensor
    real: Tensor


def token_encoder(
    encoder: Encoder, path: str, names: Sequence[str], templates: Sequence[str], rule: TokenRule
) -> Encoder:
    """An encoder whose "image features" [N, C] are the scores of the classes. Prompts are encoded here.

    Raises ConfigError for a model that is laid out over processes, and for maps that do not fit it.
    """
    model = encoder.model
    if not isinstance(model, TwoTower):
        raise ConfigError("--token-maps: tokens are compared of finished weights; use diptych evaluate.")
    maps = read_token_maps(path, model.state_dict())
    maps = TokenMaps(*(item.to(encoder.device.torch_device) for item in maps))
    classes = class_tokens(encoder, maps, names, templates, rule)
    return replace(encoder, model=_Scores(model, maps, classes), cache=False)  # type: ignore[arg-type]


def class_tokens(
    encoder: Encoder, maps: TokenMaps, names: Sequence[str], templates: Sequence[str], rule: TokenRule
) -> ClassTokens:
    """Mapped tokens of each class. Within the encoder's precision; averages are in fp32."""
    model = encoder.model
    assert isinstance(model, TwoTower)
    context = model.config.text.context_length
    device = encoder.device.torch_device
    total = torch.zeros(len(names), context, len(maps.text_bias), device=device)
    prompts = torch.zeros(len(names), context, 1, device=device)
    with encoder.inference():
        for template in templates:
            rows = [encoder.tokenizer.encode(fill(template, name)) for name in names]
            for begin in range(0, len(rows), encoder.batch_size):
                piece = rows[begin : begin + encoder.batch_size]
                tokens, lengths = encoder.tokenizer.pad([row.ids for row in piece], [row.length for row in piece])
                mapped_tokens, real = _mapped_text(model, maps, tokens.to(device), lengths.to(device), rule)
                where = slice(begin, begin + len(piece)), slice(mapped_tokens.shape[1])
                total[where] += mapped_tokens * real[..., None]
                prompts[where] += real[..., None]
    if rule == "published":
        means = total / len(templates)
        return ClassTokens(means / means.flatten(1).norm(dim=1)[:, None, None], prompts[..., 0] > 0)
    return ClassTokens(F.normalize(total, dim=-1), prompts[..., 0] > 0)


def _mapped_text(
    model: TwoTower, maps: TokenMaps, tokens: Tensor, lengths: Tensor, rule: TokenRule
) -> tuple[Tensor, Tensor]:
    text = model.config.text
    if rule == "published":
        tokens = F.pad(tokens, (0, text.context_length - tokens.shape[1]), value=text.pad_id)
    encoded = model.text(tokens, lengths, return_tokens=True)
    assert encoded.tokens is not None and encoded.mask is not None
    tokens = mapped(encoded.tokens, maps.text_weight, maps.text_bias)
    return tokens, torch.ones_like(encoded.mask) if rule == "published" else encoded.mask


def mapped(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Tokens [B, N, W] -> unit tokens fp32 [B, N, E], in full precision."""
    with torch.autocast(tokens.device.type, enabled=False):
        return F.normalize(F.linear(tokens.float(), weight, bias), dim=-1)


class _Scores(nn.Module):
    """Stands for the model in an encoder: what it gives of images are the classes' scores."""

    def __init__(self, model: TwoTower, maps: TokenMaps, classes: ClassTokens) -> None:
        super().__init__()
        self.model, self.maps, self.classes = model, maps, classes

    def encode_image(self, images: Tensor) -> Tensor:
        """Scores fp32 [B, C] of images uint8 [B, 3, H, W]."""
        tokens = self.model.image(images, return_tokens=True).tokens
        assert tokens is not None
        with torch.autocast(images.device.type, enabled=False):
            return token_scores(mapped(tokens, self.maps.image_weight, self.maps.image_bias), self.classes)


def token_scores(image_tokens: Tensor, classes: ClassTokens) -> Tensor:
    """Scores [B, C] of mapped unit image tokens [B, N, E]: the mean over tokens of the largest product with a real word."""
    count, positions, width = classes.tokens.shape
    flat = image_tokens.flatten(0, 1)
    many = max(1, SIMILARITIES // max(1, len(flat) * positions))
    scores = []
    for begin in range(0, count, many):
        tokens, real = classes.tokens[begin : begin + many], classes.real[begin : begin + many]
        products = (flat @ tokens.reshape(-1, width).T).view(len(flat), len(tokens), positions)
        best = products.masked_fill(~real, -torch.inf).amax(dim=2)
        scores.append(best.view(*image_tokens.shape[:2], len(tokens)).mean(dim=1))
    return torch.cat(scores, dim=1)
