"""SLIP (Mu et al. 2021, "SLIP: Self-supervision meets Language-Image Pre-training"): CLIP, and SimCLR on the same image tower.

    loss = contrastive(base view, caption) + weight * NT-Xent(f(h_1), f(h_2))            weight 1, temperature 0.1

h_1 and h_2 are the tower's states of two strongly augmented views: ln_post of a ViT's class token, or the pooled map of a ResNet,
before the projection into the embedding. f is an MLP of three linear layers, 4,096 wide and 256 at its end, with batch
normalization and ReLU between them. The strong views take no part in the contrastive loss. Three image passes a step.

The logarithm of the scale lies in [3, 6], the range of DeCLIP's repository, and under CLIP's limit of ln 100. Departures from the
reference implementation: batch normalization of the head over all processes (there, each by itself) and of the whole step (there,
each micro-batch), so that one process, several, and --accum-freq give the same gradient; the range holds after each step, there
before the first one too. ``--compat``: unsynchronized batch normalization, and no limit of 100, which SLIP's code lacks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

from torch import Tensor, nn

from diptych.config import NotNegative, Range
from diptych.errors import ConfigError
from diptych.models import TwoTower
from diptych.objectives import OBJECTIVES, Example, LoadModel, Objective, ObjectiveOptions, RunFacts
from diptych.objectives._heads import Norm, check_norm, projection_head, state_width
from diptych.objectives._selfsupervised import nt_xent
from diptych.objectives._terms import FAMILY_SCALE, PUBLISHED_SCALE, Features, full_precision, global_contrastive, unit
from diptych.types import Batch, Pairs, Terms, Wants


@dataclass(frozen=True)
class SlipConfig(ObjectiveOptions):
    """Options of SLIP."""

    objective: str = "slip"
    """What is optimized: the name of an objective, or module:Class."""
    ssl_weight: NotNegative = 1.0
    """Weight of the self-supervised loss beside the contrastive one."""
    ssl_width: Annotated[int, Range(1)] = 4096
    """Width of the head's two hidden layers."""
    ssl_dim: Annotated[int, Range(1)] = 256
    """Width of the features that the self-supervised loss compares."""
    ssl_temperature: Annotated[float, Range(1e-3)] = 0.1
    """Temperature of the self-supervised loss."""
    ssl_norm: Norm = "batch"
    """Norm in the head: of the batch (as published; from 32 pairs a process on), of each pair's layer, or none."""
    compat: bool = False
    """As published where that is odd: each process normalizes by itself, and the scale may exceed 100."""


class SlipFeatures(NamedTuple):
    """``image`` and ``text`` [B, D] of unit length; ``first`` and ``second`` [B, width], the states of the strong views."""

    image: Tensor
    text: Tensor
    first: Tensor
    second: Tensor


@OBJECTIVES.register("slip")
class Slip(Objective):
    """Contrastive on the base view, NT-Xent on two strong ones."""

    Config = SlipConfig
    config: SlipConfig
    wants = Wants(images=("crop", "strong", "strong"))
    cacheable = False

    def __init__(self, config: SlipConfig, model: TwoTower, load: LoadModel | None = None) -> None:
        super().__init__(config, model, load)
        if model.image in model.locked:
            raise ConfigError(
                "--objective slip teaches the image tower, which --lock-image locks; leave one of them out."
            )
        self.scale_range = PUBLISHED_SCALE if config.compat else FAMILY_SCALE
        widths = [state_width(model), config.ssl_width, config.ssl_width, config.ssl_dim]
        self.head = projection_head(widths, lambda: self.group, norm=config.ssl_norm, synchronized=not config.compat)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """A ViT and a ResNet; every norm; SigLIP's towers, whose state is their feature."""
        small = SlipConfig(ssl_width=24, ssl_dim=12)
        return (
            Example(small, "tiny-test"),
            Example(replace(small, ssl_weight=0.5, ssl_temperature=0.2), "tiny-test-resnet"),
            Example(replace(small, ssl_norm="layer"), "tiny-test"),
            Example(replace(small, ssl_norm="none"), "tiny-test-siglip"),
        )

    def begin_run(self, facts: RunFacts) -> None:
        """Raises ConfigError where a step has too few pairs to normalize the head over."""
        check_norm(self.config.ssl_norm, facts.pairs)

    def encode(self, batch: Batch, frozen: Any = None) -> SlipFeatures:
        """Features of the base view and of the caption, and the states of the two strong views."""
        image, text = self.encode_images(batch).pooled, self.encode_texts(batch).pooled
        first, second = (self.encode_images(batch, view).state for view in (1, 2))
        return SlipFeatures(unit(image), unit(text), full_precision(first), full_precision(second))

    def compare_parameters(self) -> list[nn.Parameter]:
        """The scale, and the head."""
        return [*super().compare_parameters(), *self.head.parameters()]

    def compare(self, features: SlipFeatures, pairs: Pairs) -> Terms:
        """``contrastive`` and ``ssl``, both in nats; means over this process's pairs."""
        loss, metrics = global_contrastive(Features(features.image, features.text), self.model.logit_scale, self.group)
        first, second = self.head(features.first), self.head(features.second)
        ssl, correct = nt_xent(first, second, self.config.ssl_temperature, self.group)
        return Terms({"contrastive": loss, "ssl": self.config.ssl_weight * ssl}, {**metrics, "ssl_accuracy": correct})

    def validation_terms(self, batch: Batch) -> Terms:
        """The contrastive loss alone, as of ``clip``, of the pixels of evaluation."""
        features = Features(unit(self.encode_images(batch).pooled), unit(self.encode_texts(batch).pooled))
        loss, metrics = global_contrastive(features, self.model.logit_scale, self.group)
        return Terms({"contrastive": loss}, metrics)
