"""An objective that uses all that the contract offers, so that the contract tests hold what no shipped loss uses yet.

A teacher, two image views, masked tokens, token features with a mask, integer features, a head with batch normalization that
looks across pairs, and a queue that moves once a step. Its sum has no meaning; each part is there to break if the contract does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.distributed.gather import gather, rank_offset
from diptych.models import ModelNeeds, TwoTower
from diptych.objectives import Example, LoadModel, Objective, ObjectiveOptions
from diptych.objectives._heads import projection_head
from diptych.objectives._terms import Features as Unit
from diptych.objectives._terms import contrastive, full_precision, gathered, unit
from diptych.types import Batch, Pairs, Terms, Wants

QUEUE = 12


@dataclass(frozen=True)
class EverythingConfig(ObjectiveOptions):
    """Options."""

    objective: str = "tests.objectives.everything:Everything"
    teacher: str = "tiny-test"
    patch_dropout: float = 0.5


class Features(NamedTuple):
    """``ends`` int64 [B] first, since the order of kinds must not matter; ``states`` [B, L, W] of tokens, ``real`` [B, L]."""

    ends: Tensor
    image: Tensor
    second: Tensor
    text: Tensor
    teacher: Tensor
    states: Tensor
    real: Tensor
    targets: Tensor
    nothing: Tensor | None


class Everything(Objective):
    """All parts of the contract at once."""

    Config = EverythingConfig
    config: EverythingConfig
    wants = Wants(images=("crop", "strong"), texts=("caption",), masked=True)
    validation_wants = Wants(images=("eval",))
    scale_range = (0.5, 3.0)

    def __init__(self, config: EverythingConfig, model: TwoTower, load: LoadModel | None = None) -> None:
        super().__init__(config, model, load)
        assert load is not None
        self.add_companion("teacher", load(config.teacher))
        width = model.config.embed_dim
        self.head = projection_head([width, 24, 16], lambda: self.group, last_norm=True)
        self.vocabulary = torch.nn.Linear(model.config.text.width, 11)
        self.register_buffer("queue", F.normalize(torch.ones(QUEUE, width), dim=-1))
        self.register_buffer("newest", torch.zeros(QUEUE, dtype=torch.int64))
        if config.patch_dropout:
            model.image.patch_dropout = config.patch_dropout

    @classmethod
    def model_needs(cls, options: Any) -> ModelNeeds:
        return ModelNeeds(logit_bias=-1.0, logit_scale=1.0)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        return Example(EverythingConfig(), "tiny-test"), Example(EverythingConfig(patch_dropout=0.0), "tiny-test")

    def encode_frozen(self, batch: Batch) -> Tensor:
        return self.frozen()["teacher"].image(batch.images[0]).pooled

    def encode(self, batch: Batch, frozen: Any = None) -> Features:
        first, second = self.encode_images(batch), self.encode_images(batch, view=1)
        assert batch.masked is not None
        text = self.encode_texts(batch)
        tokens = self.model.text(batch.masked.tokens, batch.lengths[0], return_tokens=True)
        return Features(
            batch.lengths[0], unit(first.pooled), second.pooled, unit(text.pooled), unit(frozen), tokens.tokens, tokens.mask,
            batch.masked.targets, None,
        )  # fmt: skip

    def compare_parameters(self) -> list[torch.nn.Parameter]:
        return [*super().compare_parameters(), *self.head.parameters(), *self.vocabulary.parameters()]

    def compare(self, features: Features, pairs: Pairs) -> Terms:
        assert features.nothing is None and len(pairs.keys) == len(features.image)
        scale = full_precision(self.model.logit_scale).exp()
        own = Unit(features.image, features.text)
        everything = Unit(*(gathered(item, self.group) for item in own))
        loss, _ = contrastive(own, everything, scale, rank_offset(len(own.image), self.group))
        heads = self.head(full_precision(features.image)), self.head(full_precision(features.second))
        distance = (heads[0] - heads[1]).square().sum(dim=1).mean()
        taught = (features.image - features.teacher).square().sum(dim=1).mean()
        logits = self.vocabulary(features.states)
        masked = _masked_loss(logits, features.targets, features.real)
        against = (features.image @ self.queue.T.to(features.image.dtype) * self.model.logit_bias).exp().mean()
        order = (pairs.indices.to(loss.dtype) * (features.image * features.text).sum(dim=1)).mean()
        losses = {"pairs": loss, "heads": distance, "teacher": taught, "masked": masked, "queue": against}
        return Terms({**losses, "order": order}, {"ends": features.ends.to(loss.dtype).mean()})

    def after_step(self, features: Features, pairs: Pairs) -> None:
        rows = gather(features.text, self.group)
        numbers = gather(pairs.indices, self.group)
        self.queue.copy_(torch.cat([self.queue, rows.to(self.queue.dtype)])[-QUEUE:])
        self.newest.copy_(torch.cat([self.newest, numbers])[-QUEUE:])

    def validation_terms(self, batch: Batch) -> Terms:
        image, text = unit(self.encode_images(batch).pooled), unit(self.encode_texts(batch).pooled)
        scale = full_precision(self.model.logit_scale).exp()
        return Terms({"pairs": contrastive(Unit(image, text), Unit(image, text), scale)[0]}, {})


def _masked_loss(logits: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """Mean over pairs of the cross-entropy of masked tokens (modulo the head's 11 classes)."""
    classes = torch.where(targets < 0, targets, targets % 11)
    each = F.cross_entropy(full_precision(logits).transpose(1, 2), classes, reduction="none")
    return (each * real).sum(dim=1).mean()
