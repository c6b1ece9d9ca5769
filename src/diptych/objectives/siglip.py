"""The sigmoid loss of SigLIP (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training").

Every pair of an image and a text of the global batch is a yes-or-no question of its own. Needs a bias, which it asks of any
model before weights are created, so that CLIP's presets and weights work. Texts are gathered whole; not in chunks around a ring.
"""

from __future__ import annotations

import math
from typing import Any

from diptych.distributed.gather import rank_offset
from diptych.models import ModelNeeds
from diptych.objectives import OBJECTIVES, Example, Objective, ObjectiveOptions
from diptych.objectives._terms import Features, full_precision, gathered, sigmoid, unit
from diptych.types import Batch, Pairs, Terms


@OBJECTIVES.register("siglip")
class SigLip(Objective):
    """SigLIP's sigmoid loss as an objective; the scale is free, as in the paper."""

    Config = ObjectiveOptions
    scale_range = None

    @classmethod
    def model_needs(cls, options: ObjectiveOptions) -> ModelNeeds:
        """A bias of -10 and a scale of 10 (its logarithm), the paper's initial values."""
        return ModelNeeds(logit_bias=-10.0, logit_scale=math.log(10.0))

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """SigLIP's towers, and CLIP's, whose preset has no bias."""
        options = ObjectiveOptions(objective="siglip")
        return Example(options, "tiny-test-siglip"), Example(options, "tiny-test")

    def encode(self, batch: Batch, frozen: Any = None) -> Features:
        """Unit features [B, D] of the first image view and the first text view."""
        return Features(unit(self.encode_images(batch).pooled), unit(self.encode_texts(batch).pooled))

    def compare(self, features: Features, pairs: Pairs) -> Terms:
        """``sigmoid``: the sum over all texts, averaged over this process's images, of the binary cross-entropy, in nats."""
        assert self.model.logit_bias is not None  # model_needs asked for it
        scale, bias = full_precision(self.model.logit_scale).exp(), full_precision(self.model.logit_bias)
        texts = gathered(features.text, self.group)
        loss, correct = sigmoid(features.image, texts, scale, bias, rank_offset(len(features.image), self.group))
        metrics = {"logit_scale": scale.detach(), "logit_bias": bias.detach(), "batch_accuracy": correct}
        return Terms({"sigmoid": loss}, metrics)
