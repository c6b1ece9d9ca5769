"""The contrastive loss of CLIP (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision").

Symmetric cross-entropy over cosine similarities times a learned scale: every image must find its caption among all
captions of the global batch, and every caption its image. Computed in fp32 whatever the towers ran in. Not the sigmoid
loss (SigLIP), and no multi-positive targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diptych.distributed.gather import rank_offset
from diptych.errors import ConfigError
from diptych.models import TwoTower
from diptych.objectives import OBJECTIVES, Example, LoadModel, Objective, ObjectiveOptions
from diptych.objectives._terms import Features, contrastive, full_precision, gathered, unit
from diptych.types import Batch, Pairs, Terms


@dataclass(frozen=True)
class ClipConfig(ObjectiveOptions):
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
        """With local rows and with all rows; a ViT and a ResNet."""
        return (
            Example(ClipConfig(), "tiny-test"),
            Example(ClipConfig(local_loss=False), "tiny-test"),
            Example(ClipConfig(), "tiny-test-resnet"),
        )

    def encode(self, batch: Batch, frozen: Any = None) -> Features:
        """Unit features [B, D] of the first image view and the first text view."""
        return Features(unit(self.encode_images(batch).pooled), unit(self.encode_texts(batch).pooled))

    def compare(self, features: Features, pairs: Pairs) -> Terms:
        """``contrastive``: the mean over this process's pairs of both directions' cross-entropy, in nats."""
        everything = Features(*(gathered(item, self.group, self.config.gather_with_grad) for item in features))
        rows, offset = features, rank_offset(len(features.image), self.group)
        if not self.config.local_loss:
            rows, offset = everything, 0
        scale = full_precision(self.model.logit_scale).exp()
        loss, correct = contrastive(rows, everything, scale, offset)
        return Terms({"contrastive": loss}, {"logit_scale": scale.detach(), "batch_accuracy": correct})
