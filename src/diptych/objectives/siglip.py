"""The sigmoid loss of SigLIP (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training").

Every pair of an image and a text of the global batch is a yes-or-no question of its own. Needs a bias, which it asks of any
model before weights are created, so that CLIP's presets and weights work. Texts are not gathered: they travel around the ring of
processes, as in the paper (``_sigmoid``). As published every other pair is a no; --repeated-captions ignored asks nothing where
another pair has the same caption.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from diptych.models import ModelNeeds
from diptych.objectives import OBJECTIVES, Example, Objective, ObjectiveOptions
from diptych.objectives._repeats import CaptionedFeatures, RepeatOptions, classes_of, with_captions
from diptych.objectives._sigmoid import sigmoid
from diptych.objectives._terms import Features, full_precision, unit
from diptych.types import Batch, Pairs, Terms


@dataclass(frozen=True)
class SigLipConfig(RepeatOptions):
    """Options of the sigmoid loss."""

    objective: str = "siglip"
    """What is optimized: the name of an objective, or module:Class."""


@OBJECTIVES.register("siglip")
class SigLip(Objective):
    """SigLIP's sigmoid loss as an objective; the scale is free, as in the paper."""

    Config = SigLipConfig
    config: SigLipConfig
    scale_range = None

    @classmethod
    def model_needs(cls, options: ObjectiveOptions) -> ModelNeeds:
        """A bias of -10 and a scale of 10 (its logarithm), the paper's initial values."""
        return ModelNeeds(logit_bias=-10.0, logit_scale=math.log(10.0))

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """SigLIP's towers, and CLIP's, whose preset has no bias; repeated captions ignored."""
        return (
            Example(SigLipConfig(), "tiny-test-siglip"),
            Example(SigLipConfig(), "tiny-test"),
            Example(SigLipConfig(repeated_captions="ignored"), "tiny-test-siglip"),
        )

    def encode(self, batch: Batch, frozen: Any = None) -> Features | CaptionedFeatures:
        """Unit features [B, D] of the first image and text view, and the caption's ids where they are asked for."""
        features = Features(unit(self.encode_images(batch).pooled), unit(self.encode_texts(batch).pooled))
        return with_captions(features, batch, self.config)

    def compare(self, features: Features | CaptionedFeatures, pairs: Pairs) -> Terms:
        """``sigmoid``: the sum over all texts, averaged over this process's images, of the binary cross-entropy, in nats."""
        assert self.model.logit_bias is not None  # model_needs asked for it
        scale, bias = full_precision(self.model.logit_scale).exp(), full_precision(self.model.logit_bias)
        classes = classes_of(features, self.group)
        loss, correct = sigmoid(features.image, features.text, scale, bias, self.group, classes=classes)
        metrics = {"logit_scale": scale.detach(), "logit_bias": bias.detach(), "batch_accuracy": correct}
        return Terms({"sigmoid": loss}, metrics)
