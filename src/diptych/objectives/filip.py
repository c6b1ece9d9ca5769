"""FILIP (Yao et al. 2022, "FILIP: Fine-grained Interactive Language-Image Pre-Training"): words find image patches.

    loss = dense + weight * contrastive,   weight 0

``dense`` is the token-wise contrastive loss of ``_dense`` between the mapped tokens of both towers, ``contrastive`` CLIP's loss
of the pooled features. As the DeCLIP benchmark publishes it (Cui et al. 2022, "Democratizing Contrastive Language-Image
Pre-training"): 16 selected tokens, 256 wide, a scale of its own that begins at 1/0.07, both scales within e^3 and e^6 after every
step, one strong view of each image, start and end token taken for words. The image's class token takes no part.

Departures: padding is masked, where the published code selects and averages it; captions are read as they are, where it reads
them with masked tokens and predicts none of them. ``--compat`` brings both back. The maps are the objective's, not the model's:
checkpoints have them, and a run's weights have towers alone. With a weight of 0 nothing trains what a pooled feature is made of
(the class token's last layers, the projections), so that evaluation by pooled features says nothing; a line says so at the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from diptych import log
from diptych.config import NotNegative, Range
from diptych.models import ModelNeeds, TwoTower
from diptych.objectives import OBJECTIVES, Example, LoadModel, Objective, ObjectiveOptions, RunFacts, text_of
from diptych.objectives._dense import (
    DENSE_WIDTH,
    MOST_TOP_K,
    TOP_K,
    DenseTokens,
    TokenMaps,
    dense_contrastive,
    token_features,
    whole_context,
)
from diptych.objectives._terms import Features, global_contrastive, unit
from diptych.objectives._tokens import image_token_width
from diptych.types import Batch, Encoded, Pairs, Terms, Wants


@dataclass(frozen=True)
class FilipConfig(ObjectiveOptions):
    """Options of FILIP."""

    objective: str = "filip"
    """What is optimized: the name of an objective, or module:Class."""
    filip_global_weight: NotNegative = 0.0
    """Weight of CLIP's loss of pooled features beside the token-wise one; the published 0 leaves pooled features untrained."""
    top_k: Annotated[int, Range(1, MOST_TOP_K)] = TOP_K
    """How many image tokens and words of a pair stand for it in comparisons with other pairs; published: 16."""
    dense_dim: Annotated[int, Range(1, 1 << 16)] = DENSE_WIDTH
    """The width that tokens of both towers are mapped to."""
    compat: bool = False
    """The published code to the letter: captions with masked tokens, and padding that counts as words."""


class FilipFeatures(NamedTuple):
    """Of unit length: ``image``, ``text`` [B, D], ``patches`` [B, N, E], ``word_tokens`` [B, L, E]; ``real`` bool [B, L]."""

    image: Tensor
    text: Tensor
    patches: Tensor
    word_tokens: Tensor
    real: Tensor


@OBJECTIVES.register("filip")
class Filip(Objective):
    """Token-wise contrastive, and CLIP's loss where it has a weight."""

    Config = FilipConfig
    config: FilipConfig
    wants = Wants(images=("strong",))
    scale_range = (3.0, 6.0)
    cacheable = False

    def __init__(self, config: FilipConfig, model: TwoTower, load: LoadModel | None = None) -> None:
        super().__init__(config, model, load)
        if config.compat:
            self.wants = Wants(images=("strong",), masked=True)
        width = image_token_width(model, "filip compares with words")
        self.maps = TokenMaps(width, model.config.text.width, config.dense_dim)
        self.logit_scale_dense = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))

    @classmethod
    def model_needs(cls, options: FilipConfig) -> ModelNeeds:
        """A mask token, where captions are masked."""
        return ModelNeeds(mask_token=options.compat)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """As by default; with few selected tokens and CLIP's loss, on a ResNet; the published rule; SigLIP's towers."""
        return (
            Example(FilipConfig(), "tiny-test"),
            Example(FilipConfig(filip_global_weight=0.5, top_k=2, dense_dim=24), "tiny-test-resnet"),
            Example(FilipConfig(compat=True), "tiny-test"),
            Example(FilipConfig(filip_global_weight=1.0), "tiny-test-siglip"),
        )

    def begin_run(self, facts: RunFacts) -> None:
        """Say that pooled features stay untrained, where they do."""
        if not self.config.filip_global_weight:
            log.warn(
                "--filip-global-weight 0, as published, trains tokens and no pooled feature: retrieval and zero-shot by pooled "
                "features stay near chance; give it a weight to evaluate by them"
            )

    def encode(self, batch: Batch, frozen: Any = None) -> FilipFeatures:
        """Pooled features and mapped tokens of the first image view and of the caption."""
        image, text = self.encode_images(batch, return_tokens=True), self._encode_caption(batch)
        return FilipFeatures(unit(image.pooled), unit(text.pooled), *token_features(self.maps, image, text))

    def _encode_caption(self, batch: Batch) -> Encoded:
        if not self.config.compat:
            return self.encode_texts(batch, return_tokens=True)
        ids = batch.tokens[0] if batch.masked is None else batch.masked.tokens  # validation masks nothing
        text = self.model.config.text
        padded = whole_context(ids, text.context_length, text.pad_id)
        return text_of(self.model.text, batch, ids=padded, return_tokens=True)

    def token_maps(self) -> str:
        """Tokens are compared by ``maps``."""
        return "maps"

    def compare_parameters(self) -> list[nn.Parameter]:
        """Both scales."""
        return [*super().compare_parameters(), self.logit_scale_dense]

    def compare(self, features: FilipFeatures, pairs: Pairs) -> Terms:
        """``dense``, and ``contrastive`` times its weight; means over this process's pairs, in nats."""
        tokens = DenseTokens(features.patches, features.word_tokens, features.real)
        config = self.config
        dense, metrics = dense_contrastive(tokens, self.logit_scale_dense, self.group, config.top_k, config.compat)
        pooled = Features(features.image, features.text)
        loss, others = global_contrastive(pooled, self.model.logit_scale, self.group)
        # Also with a weight of 0: every parameter then has a gradient, of zeros, as replicas on several processes need it.
        return Terms({"dense": dense, "contrastive": config.filip_global_weight * loss}, {**metrics, **others})

    def after_step(self, features: FilipFeatures, pairs: Pairs) -> None:
        """The dense scale stays in its range."""
        self.logit_scale_dense.clamp_(*self.scale_range)
