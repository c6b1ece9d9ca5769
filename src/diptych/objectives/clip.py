"""The contrastive loss of CLIP (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision").

Symmetric cross-entropy over cosine similarities times a learned scale: every image must find its caption among all
captions of the global batch, and every caption its image. Computed in fp32 whatever the towers ran in. Not the sigmoid
loss (SigLIP). As published every other pair is a negative; --repeated-captions ignored leaves out, of the negatives, pairs with
the same caption, which is the same loss where captions are distinct.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diptych.distributed.gather import rank_offset
from diptych.errors import ConfigError
from diptych.models import TwoTower
from diptych.objectives import OBJECTIVES, Example, LoadModel, Objective
from diptych.objectives._repeats import CaptionedFeatures, RepeatOptions, classes_of, with_captions
from diptych.objectives._terms import Features, Paired, contrastive, full_precision, gathered, unit
from diptych.types import Batch, Pairs, Terms


@dataclass(frozen=True)
class ClipConfig(RepeatOptions):
    """Options of the CLIP objective."""

    local_loss: bool = True
    """Under torchrun, score only this process's rows against all columns: same gradient, less memory."""
    gather_with_grad: bool = True
    """Let gradients cross processes, which is what makes many processes equal one."""


@OBJECTIVES.register("clip")
class Clip(Objective):
    """CLIP's contrastive loss as an objective."""

    Config = ClipConfig
    config: ClipConfig

    def __init__(self, config: ClipConfig, model: TwoTower, load: LoadModel | None = None) -> None:
        if config.local_loss and not config.gather_with_grad:
            raise ConfigError(
                "--local-loss without --gather-with-grad gives wrong gradients; add --gather-with-grad, or --no-local-loss."
            )
        super().__init__(config, model, load)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """With local rows and with all rows; a ViT and a ResNet; repeated captions ignored."""
        return (
            Example(ClipConfig(), "tiny-test"),
            Example(ClipConfig(local_loss=False), "tiny-test"),
            Example(ClipConfig(), "tiny-test-resnet"),
            Example(ClipConfig(repeated_captions="ignored"), "tiny-test"),
        )

    def encode(self, batch: Batch, frozen: Any = None) -> Features | CaptionedFeatures:
        """Unit features [B, D] of the first image and text view, and the caption's ids where they are asked for."""
        features = Features(unit(self.encode_images(batch).pooled), unit(self.encode_texts(batch).pooled))
        return with_captions(features, batch, self.config)

    def compare(self, features: Features | CaptionedFeatures, pairs: Pairs) -> Terms:
        """``contrastive``: the mean over this process's pairs of both directions' cross-entropy, in nats."""
        with_gradient = self.config.gather_with_grad
        everything = Features(*(gathered(item, self.group, with_gradient) for item in features[:2]))
        rows: Paired = features
        offset = rank_offset(len(features.image), self.group)
        if not self.config.local_loss:
            rows, offset = everything, 0
        scale = full_precision(self.model.logit_scale).exp()
        classes = classes_of(features, self.group)
        loss, correct = contrastive(rows, everything, scale, offset, classes=classes)
        return Terms({"contrastive": loss}, {"logit_scale": scale.detach(), "batch_accuracy": correct})
