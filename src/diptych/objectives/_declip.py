"""What DeCLIP and DeFILIP share: options, the views and their features, and DeCLIP's four terms. The formulas are in ``declip``.

Not an entry: ``declip`` registers these terms as they are, ``defilip`` adds one. A term of weight 0 is left out with all that it
needs: its head, its queue, its masked tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.config import NotNegative, Range
from diptych.distributed.gather import gather, rank_offset
from diptych.errors import ConfigError
from diptych.models import ModelNeeds, TwoTower
from diptych.objectives._base import LoadModel, Objective, ObjectiveOptions, RunFacts
from diptych.objectives._heads import Norm, check_norm, projection_head
from diptych.objectives._parts import text_of
from diptych.objectives._queue import FeatureQueue
from diptych.objectives._selfsupervised import masked_token_loss, masked_token_sums, simsiam
from diptych.objectives._terms import (
    FAMILY_SCALE,
    Features,
    contrastive,
    full_precision,
    gathered,
    global_contrastive,
    row_contrastive,
    unit,
)
from diptych.types import Batch, Encoded, Pairs, Terms, Wants

Positive = Annotated[int, Range(1)]


@dataclass(frozen=True)
class DeclipOptions(ObjectiveOptions):
    """Options of DeCLIP's terms."""

    contrastive_weight: NotNegative = 0.4
    """Weight of the contrastive loss over the views."""
    nn_weight: NotNegative = 0.2
    """Weight of the loss against nearest neighbors of the texts; 0 leaves it out."""
    simsiam_weight: NotNegative = 0.2
    """Weight of SimSiam's loss on the two image views; 0 leaves it out."""
    mlm_weight: NotNegative = 0.2
    """Weight of the loss of masked tokens; 0 leaves it out, and masks no token."""
    declip_views: Literal["both", "image"] = "both"
    """Two views of image and text, or two of the image and one of the text."""
    second_text: Literal["augmented", "another"] | None = None
    """The second text view: the caption changed by EDA (default), or another caption of the record."""
    queue_size: Positive = 65536
    """Text features of past steps among which nearest neighbors are searched."""
    nn_topk: Positive = 1
    """Nearest neighbors of a text; the loss is the mean over them."""
    simsiam_width: Positive = 1024
    """Width of SimSiam's projector and of the features that it compares."""
    simsiam_bottleneck: Positive = 512
    """Width of the hidden layer of SimSiam's predictor."""
    ssl_norm: Norm = "batch"
    """Norm in SimSiam's heads: of the batch (as published; from 32 pairs a process on), of each pair's layer, or none."""
    compat: bool = False
    """As published where that is odd: each process normalizes and averages masked tokens by itself, the queue loses rows."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the text views."""
        return ("caption", self.second_text or "augmented") if self.declip_views == "both" else ("caption",)


class DeclipFeatures(NamedTuple):
    """Features [B, D] of the views, not normalized, the second text's None with one text view; of the masked tokens of each
    text the summed cross-entropies [B] and their number int64 [B]; what ``token_fields`` adds.

    Of tokens, of unit length: ``patches_1`` and ``patches_2`` [B, N, E], ``word_tokens_1`` and ``word_tokens_2`` [B, L, E],
    ``real_1`` and ``real_2`` bool [B, L].
    """

    image_1: Tensor
    image_2: Tensor
    text_1: Tensor
    text_2: Tensor | None
    masked_sums: Tensor | None
    masked_counts: Tensor | None
    patches_1: Tensor | None = None
    word_tokens_1: Tensor | None = None
    real_1: Tensor | None = None
    patches_2: Tensor | None = None
    word_tokens_2: Tensor | None = None
    real_2: Tensor | None = None


class DeclipTerms(Objective):
    """DeCLIP's terms as an objective that is not registered.

    A subclass with terms of tokens sets ``token_views``, the views of which towers give tokens, and ``pads_texts`` where it wants
    padding to the whole context computed, and overrides ``token_fields``.
    """

    config: DeclipOptions
    scale_range = FAMILY_SCALE
    cacheable = False
    token_views = 0
    pads_texts = False

    def __init__(self, config: DeclipOptions, model: TwoTower, load: LoadModel | None = None) -> None:
        super().__init__(config, model, load)
        _check(config, model)
        self.wants = Wants(("strong", "strong"), config.texts, masked=config.mlm_weight > 0)
        embedding, width = model.config.embed_dim, config.simsiam_width
        self.projector = self.predictor = self.token_head = self.text_queue = None
        if config.simsiam_weight:
            form: dict[str, Any] = {"norm": config.ssl_norm, "synchronized": not config.compat}
            self.projector = projection_head([embedding, width, width, width], lambda: self.group, True, **form)
            bottleneck = [width, config.simsiam_bottleneck, width]
            self.predictor = projection_head(bottleneck, lambda: self.group, **form)
        if config.mlm_weight:
            self.token_head = nn.Linear(model.config.text.width, model.config.text.vocab_size)
        if config.nn_weight:
            self.text_queue = FeatureQueue(config.queue_size, embedding, drops_rest=config.compat)
            self.equal_buffers = ("text_queue.entries", "text_queue.position")

    @classmethod
    def model_needs(cls, options: DeclipOptions) -> ModelNeeds:
        """A mask token where tokens are masked."""
        return ModelNeeds(mask_token=options.mlm_weight > 0)

    def begin_run(self, facts: RunFacts) -> None:
        """Raises ConfigError where a step has too few pairs to normalize over, or more texts than the queue has room for."""
        if self.projector is not None:
            check_norm(self.config.ssl_norm, facts.pairs)
        texts = len(self.config.texts)
        enqueued = facts.pairs * facts.processes * texts
        if self.text_queue is not None and enqueued > self.config.queue_size:
            raise ConfigError(
                f"--queue-size {self.config.queue_size}: a step enqueues {enqueued} text features ({facts.pairs} pairs x "
                f"{facts.processes} processes x {texts} views); give at least {enqueued}, or a smaller --batch-size."
            )

    # --- pair by pair ---------------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch, frozen: Any = None) -> DeclipFeatures:
        """Features of both image views and of the text views, the first of them masked; what ``token_fields`` makes of tokens."""
        images = [self.encode_images(batch, view, return_tokens=view < self.token_views) for view in (0, 1)]
        texts = [self._encode_view(batch, view) for view in range(len(batch.tokens))]
        sums = counts = None
        if self.token_head is not None:
            assert batch.masked is not None and texts[0].tokens is not None
            states = texts[0].tokens[:, : batch.masked.targets.shape[1]]
            sums, counts = masked_token_sums(states, batch.masked.targets, self.token_head, batch.predicted)
        image_1, image_2, *pooled = (full_precision(item.pooled) for item in (*images, *texts))
        features = DeclipFeatures(image_1, image_2, pooled[0], pooled[1] if len(pooled) > 1 else None, sums, counts)
        return features._replace(**self.token_fields(images, texts))

    def token_fields(self, images: Sequence[Encoded], texts: Sequence[Encoded]) -> dict[str, Tensor]:
        """Fields of the features that are made of the tokens of ``token_views`` views; none here."""
        return {}

    def _encode_view(self, batch: Batch, view: int) -> Encoded:
        """A text view; the first with its tokens masked, as the contrastive loss sees it too."""
        masked = batch.masked if view == 0 else None
        ids = batch.tokens[view] if masked is None else masked.tokens
        text = self.model.config.text
        if self.pads_texts and view < self.token_views:
            ids = F.pad(ids, (0, text.context_length - ids.shape[1]), value=text.pad_id)
        return_tokens = masked is not None or view < self.token_views
        return text_of(self.model.text, batch, view, ids=ids, return_tokens=return_tokens)

    # --- the whole batch ------------------------------------------------------------------------------------------------------

    def compare_parameters(self) -> list[nn.Parameter]:
        """The scale, and SimSiam's heads."""
        heads = [item for item in (self.projector, self.predictor) if item is not None]
        return [*super().compare_parameters(), *(item for module in heads for item in module.parameters())]

    def compare(self, features: DeclipFeatures, pairs: Pairs) -> Terms:
        """``contrastive``, ``simsiam``, ``mlm`` and ``nearest``, each times its weight; in nats, but for ``simsiam``."""
        config = self.config
        scale = full_precision(self.model.logit_scale).exp()
        loss, correct = self._contrastive(features, scale)
        losses = {"contrastive": config.contrastive_weight * loss}
        metrics = {"logit_scale": scale.detach(), "batch_accuracy": correct}
        if self.projector is not None and self.predictor is not None:
            targets = self.projector(features.image_1), self.projector(features.image_2)
            predictions = self.predictor(targets[0]), self.predictor(targets[1])
            losses["simsiam"] = config.simsiam_weight * simsiam(predictions, targets)
        if features.masked_sums is not None and features.masked_counts is not None:
            masked = masked_token_loss(features.masked_sums, features.masked_counts, self.group, local=config.compat)
            losses["mlm"] = config.mlm_weight * masked
        if self.text_queue is not None:
            nearest, metrics["nn_similarity"] = self._nearest(features, scale)
            losses["nearest"] = config.nn_weight * nearest
        return Terms(losses, metrics)

    def _contrastive(self, features: DeclipFeatures, scale: Tensor) -> tuple[Tensor, Tensor]:
        """CLIP's loss, the mean over all pairs of an image view and a text view."""
        own = [[unit(item) for item in views if item is not None] for views in (features[:2], features[2:4])]
        everything = [[gathered(item, self.group) for item in views] for views in own]
        offset = rank_offset(len(features.image_1), self.group)
        results = [
            contrastive(Features(image, text), Features(all_images, all_texts), scale, offset)
            for image, all_images in zip(own[0], everything[0], strict=True)
            for text, all_texts in zip(own[1], everything[1], strict=True)
        ]
        losses, correct = zip(*results, strict=True)
        return torch.stack(losses).mean(), torch.stack(correct).mean()

    def _nearest(self, features: DeclipFeatures, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The images against the nearest neighbors of their texts, from image to text only; the mean over image views, text
        views and neighbors. And the mean cosine of a text and its nearest neighbor.
        """
        assert self.text_queue is not None
        images = [unit(features.image_1), unit(features.image_2)]
        offset = rank_offset(len(features.image_1), self.group)
        losses, cosines = [], []
        for text in _texts(features):
            neighbors = self.text_queue.nearest(text, self.config.nn_topk)
            cosines.append((text.detach() * neighbors[:, 0]).sum(dim=1).mean())
            columns = gather(neighbors, self.group).unbind(dim=1)
            losses += [row_contrastive(image, column, scale, offset)[0] for image in images for column in columns]
        return torch.stack(losses).mean(), torch.stack(cosines).mean()

    def after_step(self, features: DeclipFeatures, pairs: Pairs) -> None:
        """The step's texts of all processes go into the queue: the second view first, as published."""
        if self.text_queue is not None:
            for text in reversed(_texts(features)):
                self.text_queue.push(gather(text, self.group))

    def validation_terms(self, batch: Batch) -> Terms:
        """The contrastive loss alone, as of ``clip``, of the pixels of evaluation and the caption as it is."""
        features = Features(unit(self.encode_images(batch).pooled), unit(self.encode_texts(batch).pooled))
        loss, metrics = global_contrastive(features, self.model.logit_scale, self.group)
        return Terms({"contrastive": loss}, metrics)


def _texts(features: DeclipFeatures) -> list[Tensor]:
    """Unit features [B, D] of the text views."""
    return [unit(item) for item in (features.text_1, features.text_2) if item is not None]


def _check(config: DeclipOptions, model: TwoTower) -> None:
    """Raise ConfigError for options that contradict each other, and for terms that would teach a locked tower."""
    if config.second_text is not None and config.declip_views == "image":
        raise ConfigError(f"--second-text {config.second_text} goes with --declip-views both; leave one of them out.")
    if config.nn_topk > config.queue_size:
        raise ConfigError(
            f"--nn-topk {config.nn_topk}: the queue has --queue-size {config.queue_size} entries; give at most that."
        )
    defaults = {item.name: item.default for item in fields(config)}
    for weight, names in _NEEDS_WEIGHT.items():
        changed = [name for name in names if getattr(config, name) != defaults[name]]
        if changed and not getattr(config, weight):
            flag = _flag(changed[0])
            raise ConfigError(
                f"{flag} {getattr(config, changed[0])}: {_flag(weight)} 0 leaves its loss out; drop {flag}."
            )
    terms = (
        (model.image, config.simsiam_weight, "--simsiam-weight", "--lock-image"),
        (model.text, config.mlm_weight, "--mlm-weight", "--lock-text"),
    )
    for tower, share, flag, lock in terms:
        if share and tower in model.locked:
            raise ConfigError(
                f"{flag} {share:g} teaches a tower that {lock} locks; give {flag} 0, or leave {lock} out."
            )


_NEEDS_WEIGHT = {
    "nn_weight": ("queue_size", "nn_topk"),
    "simsiam_weight": ("simsiam_width", "simsiam_bottleneck", "ssl_norm"),
}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
