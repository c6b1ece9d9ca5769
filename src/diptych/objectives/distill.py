"""Distillation: a small model (student) learns from a finished, frozen one (teacher) while it learns from the pairs.

    feature:   loss = contrastive + weight * (mse(u_image, t_image) + mse(u_text, t_text)),   weight 2000
               u = unit(M x), t = unit features of the teacher, mse the mean over pairs and dimensions; M is a linear map
               where the teacher's features have another width than the student's x, and nothing where they have the same.
               Feature distillation of Yang et al. 2024, "CLIP-KD: An Empirical Study of CLIP Model Distillation".
    relation:  loss = contrastive + weight * (CE(T, S) + CE(T', S')) / 2,   weight 1
               T and S [B, B] the softmax of the teacher's and of the student's scaled similarities of images to texts, T' and
               S' of texts to images, CE the mean over rows of - sum T log S: open_clip's DistillClipLoss.

The teacher sees the very crop and the very tokens of the student, so it must take images of the same size and the same tokens.
It is a companion: in evaluation mode, without gradient, not in the run's weights, hashed for resume, computed once a step
however many micro-batches. With ``--distill-images stored`` its image tower instead sees each image once, whole, as in
evaluation, before the first step; the features are kept on disk for further runs, and its texts are still computed live.
Departures: CLIP-KD's other terms (masked features, gradients, interactive contrast) are not here; its published code applies M
before the features have unit length, as we do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.config import NotNegative
from diptych.distributed.gather import gather
from diptych.errors import ConfigError, DiptychError
from diptych.models import ModelConfig, TwoTower
from diptych.objectives import OBJECTIVES, Example, LoadModel, Objective, ObjectiveOptions, text_of
from diptych.objectives._terms import Features, full_precision, gathered, global_contrastive, unit
from diptych.types import Batch, Pairs, Terms

WEIGHTS = {"feature": 2000.0, "relation": 1.0}


@dataclass(frozen=True)
class DistillConfig(ObjectiveOptions):
    """Options of distillation."""

    objective: str = "distill"
    distill_model: str = ""
    """The teacher's architecture, beside --distill-pretrained; or, alone, a run's folder or a weight file of any format."""
    distill_pretrained: str = ""
    """The teacher's weights: a tag of its architecture, a file or a folder."""
    distill_kind: Literal["feature", "relation"] = "feature"
    """What is learned: the teacher's features (CLIP-KD), or its similarities within a batch (open_clip's)."""
    distill_images: Literal["live", "stored"] = "live"
    """The teacher sees the student's own crop in every step, or each image once, as in evaluation: features kept on disk."""
    distill_weight: NotNegative | None = None
    """Weight beside the contrastive loss; without it, 2000 for features (CLIP-KD's) and 1 for relations (open_clip's)."""


class DistillFeatures(NamedTuple):
    """``image`` and ``text`` [B, D], not normalized; of the teacher [B, E], unit length, without gradient."""

    image: Tensor
    text: Tensor
    teacher_image: Tensor
    teacher_text: Tensor


@OBJECTIVES.register("distill")
class Distill(Objective):
    """Contrastive, and the difference from a teacher."""

    Config = DistillConfig
    config: DistillConfig
    cacheable = False

    def __init__(self, config: DistillConfig, model: TwoTower, load: LoadModel | None = None) -> None:
        super().__init__(config, model, load)
        teacher = _load(config, load)
        _check_inputs(config, model.config, teacher.config)
        self.add_companion("teacher", teacher)
        self._stored: Tensor | None = None
        self.weight = WEIGHTS[config.distill_kind] if config.distill_weight is None else config.distill_weight
        widths = model.config.embed_dim, teacher.config.embed_dim
        mapped = config.distill_kind == "feature" and widths[0] != widths[1]
        self.maps = nn.ModuleList(nn.Linear(*widths) for _ in range(2)) if mapped else None

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """Features of the same width, of another, and of a ResNet; relations; stored features."""
        return (
            Example(DistillConfig(distill_model="tiny-test"), "tiny-test"),
            Example(DistillConfig(distill_model="tiny-test-wide"), "tiny-test"),
            Example(DistillConfig(distill_model="tiny-test"), "tiny-test-resnet"),
            Example(DistillConfig(distill_model="tiny-test-wide", distill_kind="relation"), "tiny-test"),
            Example(DistillConfig(distill_model="tiny-test-wide", distill_images="stored"), "tiny-test"),
        )

    def stored_companion(self) -> TwoTower | None:
        """The teacher, where its image features are stored."""
        teacher: Any = self.frozen()["teacher"]
        return teacher if self.config.distill_images == "stored" else None

    def store(self, features: Tensor) -> None:
        """Take the teacher's features of every record's image, fp32 [records, E]."""
        self._stored = features

    def on_host(self, batch: Batch) -> Batch:
        """With the stored features of its images, where there are some and the batch is still on the CPU."""
        if self._stored is None or not batch.indices.is_cpu:
            return batch
        return batch._replace(companion=self._stored[batch.indices])

    def encode_frozen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's unit features [B, E] of the same crop, or the stored ones of the image, and of the same tokens."""
        teacher: Any = self.frozen()["teacher"]
        text = text_of(teacher.text, batch)
        if self.config.distill_images == "live":
            return unit(teacher.image(batch.images[0]).pooled), unit(text.pooled)
        if self._stored is None:
            raise ConfigError("no features of the teacher were stored; call store(features) before the first step.")
        image = batch.companion
        if image is None:  # a batch that was on the device already
            image = self._stored[batch.indices.to(self._stored.device)].to(text.pooled.device)
        return unit(image.to(text.pooled.dtype)), unit(text.pooled)

    def encode(self, batch: Batch, frozen: Any = None) -> DistillFeatures:
        """Features of the first image view and the first text view, and the teacher's."""
        image, text = self.encode_images(batch).pooled, self.encode_texts(batch).pooled
        return DistillFeatures(full_precision(image), full_precision(text), *frozen)

    def compare_parameters(self) -> list[nn.Parameter]:
        """The scale, and the linear maps."""
        return [*super().compare_parameters(), *(() if self.maps is None else self.maps.parameters())]

    def compare(self, features: DistillFeatures, pairs: Pairs) -> Terms:
        """``contrastive``, in nats, and ``feature`` or ``relation`` times its weight; means over this process's pairs."""
        own = Features(unit(features.image), unit(features.text))
        teacher = Features(features.teacher_image.detach(), features.teacher_text.detach())
        loss, metrics = global_contrastive(own, self.model.logit_scale, self.group)
        with torch.autocast(loss.device.type, enabled=False):
            if self.config.distill_kind == "feature":
                mapped = Features(*self._mapped(features, own))
                distance = F.mse_loss(mapped.image, teacher.image) + F.mse_loss(mapped.text, teacher.text)
                cosines = [
                    (ours * theirs).sum(dim=1).mean().detach() for ours, theirs in zip(mapped, teacher, strict=True)
                ]
                metrics["teacher_cosine"] = (cosines[0] + cosines[1]) / 2
            else:
                distance = self._relation(own, teacher)
        return Terms({"contrastive": loss, self.config.distill_kind: self.weight * distance}, metrics)

    def validation_terms(self, batch: Batch) -> Terms:
        """The contrastive loss alone, as of ``clip``, so that runs with and without a teacher compare."""
        features = Features(unit(self.encode_images(batch).pooled), unit(self.encode_texts(batch).pooled))
        loss, metrics = global_contrastive(features, self.model.logit_scale, self.group)
        return Terms({"contrastive": loss}, metrics)

    def _mapped(self, features: DistillFeatures, own: Features) -> tuple[Tensor, Tensor]:
        if self.maps is None:
            return own.image, own.text
        return unit(self.maps[0](features.image)), unit(self.maps[1](features.text))

    def _relation(self, own: Features, teacher: Features) -> Tensor:
        """The cross-entropy of the teacher's softmax with the student's, of this process's rows against all columns."""
        everything = Features(*(gathered(item, self.group) for item in own))
        theirs = Features(*(gather(item, self.group) for item in teacher))
        teacher_model: Any = self.frozen()["teacher"]
        scale, their_scale = (full_precision(item.logit_scale).exp() for item in (self.model, teacher_model))
        both = (
            (own.image @ everything.text.T, teacher.image @ theirs.text.T),
            (own.text @ everything.image.T, teacher.text @ theirs.image.T),
        )
        losses = [F.cross_entropy(scale * mine, (their_scale * other).softmax(dim=1)) for mine, other in both]
        return (losses[0] + losses[1]) / 2


def _load(config: DistillConfig, load: LoadModel | None) -> TwoTower:
    if not config.distill_model and not config.distill_pretrained:
        raise ConfigError(
            "--objective distill has no teacher; give --distill-model with a run's folder or a weight file, or with an "
            "architecture and --distill-pretrained."
        )
    if load is None:
        raise ConfigError("the objective distill was built without a function that loads the teacher; give load.")
    # Models are loaded for other flags too, so the message alone would not say which flag is meant.
    given = f"--distill-model {config.distill_model}" if config.distill_model else "no --distill-model"
    given += (
        f", --distill-pretrained {config.distill_pretrained}"
        if config.distill_pretrained
        else ", no --distill-pretrained"
    )
    try:
        if config.distill_pretrained:
            return load(config.distill_pretrained, model=config.distill_model)
        return load(config.distill_model)
    except DiptychError as error:
        raise ConfigError(f"the teacher ({given}): {error}") from error


def _check_inputs(config: DistillConfig, student: ModelConfig, teacher: ModelConfig) -> None:
    """Raise ConfigError unless the teacher takes the student's images and tokens as they are."""
    where = f"--distill-model {config.distill_model}" if config.distill_model else "--distill-pretrained"
    sizes = student.vision.image_size, teacher.vision.image_size
    if sizes[0] != sizes[1] and config.distill_images == "live":
        raise ConfigError(
            f"{where}: the teacher takes images of {sizes[1]} pixels and {student.name} of {sizes[0]}; both see the same crop: "
            f"give --force-image-size {sizes[1]}, --distill-images stored, or another teacher."
        )
    ours, theirs = student.text, teacher.text
    names = "tokenizer", "vocab_size", "start_id", "end_id", "pad_id"
    if differing := [name for name in names if getattr(ours, name) != getattr(theirs, name)]:
        name = differing[0]
        raise ConfigError(
            f"{where}: the teacher's {name} is {getattr(theirs, name)!r} and {student.name}'s {getattr(ours, name)!r}; both read "
            "the same tokens: give a teacher with the same tokenizer."
        )
    if ours.tokenizer == "own":
        raise ConfigError(
            f"{where}: it has a vocabulary of its own, which cannot be compared with {student.name}'s; give models that have the "
            "tokenizer of a family, such as CLIP's."
        )
    # CLIP's texts end at their end token, wherever that is; others are padded to the whole context, which a tower sees.
    limits = ours.context_length, theirs.context_length
    fits = limits[0] <= limits[1] if ours.tokenizer == "bpe" else limits[0] == limits[1]
    if not fits:
        raise ConfigError(
            f"{where}: the teacher reads {limits[1]} tokens and {student.name} {limits[0]}; both read the same captions: give "
            f"--force-context-length {limits[1]}, or another teacher."
        )
