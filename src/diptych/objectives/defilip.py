"""DeFILIP (Cui et al. 2022, "Democratizing Contrastive Language-Image Pre-training: A CLIP Benchmark of Data, Model, and
Supervision"): DeCLIP's four losses, and FILIP's token-wise one beside them.

    loss = 0.4 contrastive + 0.2 simsiam + 0.2 mlm + 0.2 nearest + 0.2 dense

The first four are ``declip``'s, with its options; ``dense`` is FILIP's loss of the patches of the first image view and the tokens
of the masked caption, each mapped to 256 numbers and of unit length, of which 16 stand for a pair among the others (``_dense``),
with a scale of its own that begins at 1/0.07. ``--dense-aug`` takes the mean over all four pairs of image view and text view.

The logarithm of the dense scale lies in [3, 6] after each step, as published, that of the other in [3, ln 100]. Departures: those
of ``declip``; padding is no word, where the published code selects and averages it. ``--compat`` brings back that rule and those
that ``declip`` lists. The maps are the objective's: checkpoints have them, a run's weights have the towers alone, and evaluation
goes by pooled features, as published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from diptych.config import NotNegative, Range
from diptych.errors import ConfigError
from diptych.models import TwoTower
from diptych.objectives import OBJECTIVES, Example, LoadModel
from diptych.objectives._declip import DeclipFeatures, DeclipOptions, DeclipTerms
from diptych.objectives._dense import (
    DENSE_WIDTH,
    MOST_TOP_K,
    TOP_K,
    DenseTokens,
    TokenMaps,
    dense_contrastive,
    token_features,
)
from diptych.objectives._terms import PUBLISHED_SCALE
from diptych.objectives._tokens import image_token_width
from diptych.types import Encoded, Pairs, Terms


@dataclass(frozen=True)
class DefilipConfig(DeclipOptions):
    """Options of DeFILIP."""

    objective: str = "defilip"
    """What is optimized: the name of an objective, or module:Class."""
    dense_weight: NotNegative = 0.2
    """Weight of the token-wise loss."""
    dense_aug: bool = False
    """The token-wise loss of all four pairs of an image view and a text view, not of the first two views alone."""
    top_k: Annotated[int, Range(1, MOST_TOP_K)] = TOP_K
    """How many image tokens and words of a pair stand for it in comparisons with other pairs; published: 16."""
    dense_dim: Annotated[int, Range(1, 1 << 16)] = DENSE_WIDTH
    """The width that tokens of both towers are mapped to."""


@OBJECTIVES.register("defilip")
class Defilip(DeclipTerms):
    """DeCLIP's terms, and the token-wise one."""

    Config = DefilipConfig
    config: DefilipConfig

    def __init__(self, config: DefilipConfig, model: TwoTower, load: LoadModel | None = None) -> None:
        super().__init__(config, model, load)
        if config.dense_aug and config.declip_views == "image":
            raise ConfigError(
                "--dense-aug compares two text views; give --declip-views both, or leave --dense-aug out."
            )
        self.token_views = 2 if config.dense_aug else 1
        self.pads_texts = config.compat
        width = image_token_width(model, "defilip compares with words")
        self.maps = TokenMaps(width, model.config.text.width, config.dense_dim)
        self.logit_scale_dense = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """A ViT, a ResNet with few selected tokens, and all four pairs of views."""
        small = DefilipConfig(queue_size=40, simsiam_width=24, simsiam_bottleneck=12, dense_dim=20)
        return (
            Example(small, "tiny-test"),
            Example(replace(small, ssl_norm="layer", queue_size=31, top_k=2, declip_views="image"), "tiny-test-resnet"),
            Example(replace(small, dense_aug=True, dense_weight=0.5), "tiny-test"),
        )

    def token_fields(self, images: Sequence[Encoded], texts: Sequence[Encoded]) -> dict[str, Tensor]:
        """Mapped tokens of unit length of the first views, or of both."""
        fields: dict[str, Tensor] = {}
        for number in range(1, self.token_views + 1):
            tokens = token_features(self.maps, images[number - 1], texts[number - 1])
            names = f"patches_{number}", f"word_tokens_{number}", f"real_{number}"
            fields.update(zip(names, tokens, strict=True))
        return fields

    def token_maps(self) -> str:
        """Tokens are compared by ``maps``."""
        return "maps"

    def compare_parameters(self) -> list[nn.Parameter]:
        """Both scales, and SimSiam's heads."""
        return [*super().compare_parameters(), self.logit_scale_dense]

    def compare(self, features: DeclipFeatures, pairs: Pairs) -> Terms:
        """DeCLIP's terms, and ``dense`` times its weight, in nats."""
        terms, config = super().compare(features, pairs), self.config
        results = [
            dense_contrastive(tokens, self.logit_scale_dense, self.group, config.top_k, config.compat)
            for tokens in _token_pairs(features)
        ]
        loss = torch.stack([loss for loss, _ in results]).mean()
        metrics = {name: torch.stack([item[name] for _, item in results]).mean() for name in results[0][1]}
        return Terms({**terms.losses, "dense": config.dense_weight * loss}, {**terms.metrics, **metrics})

    def after_step(self, features: DeclipFeatures, pairs: Pairs) -> None:
        """The queue moves, and the dense scale stays in its range."""
        super().after_step(features, pairs)
        self.logit_scale_dense.clamp_(*PUBLISHED_SCALE)


def _token_pairs(features: DeclipFeatures) -> list[DenseTokens]:
    """The tokens of every pair of an image view and a text view that have some."""
    images = [item for item in (features.patches_1, features.patches_2) if item is not None]
    texts = ((features.word_tokens_1, features.real_1), (features.word_tokens_2, features.real_2))
    return [
        DenseTokens(patches, tokens, real)
        for patches in images
        for tokens, real in texts
        if tokens is not None and real is not None
    ]
