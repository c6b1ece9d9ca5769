"""SuperCLIP (Zhao et al. 2025, "SuperCLIP: CLIP with Simple Classification Supervision"): which words describe the image?

CLIP's contrastive loss, and beside it a classification of the image into the tokens of its own caption, so that words teach
the image tower directly and not only through the pooled text. One linear layer W, on the mean m_i of the image's tokens (patches,
or positions of a ResNet's last map) after the tower's last norm:

    w_c = log((N + 1) / (n_c + 1))                      N captions seen so far, n_c of them with token c
    y_ic = w_c [c in caption i] / sum_k w_k [k in caption i]
    loss = contrastive + weight * mean_i( - sum_c y_ic log softmax(W m_i)_c )

Departures from the published code: the counts are exact integers of captions (there, sums of means of batches: the same numbers
while batches are of one size); padding and special tokens are no classes (there, they are, and weigh nothing but for padding in
captions that fill the context); a caption whose tokens weigh nothing has zero loss. Counts are of the whole batch over all
processes, and move once a step. Not SuperClass, which has no text tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.config import NotNegative
from diptych.distributed.gather import gather
from diptych.errors import ConfigError
from diptych.models import TwoTower
from diptych.objectives import OBJECTIVES, Example, LoadModel, Objective, ObjectiveOptions
from diptych.objectives._terms import Features, full_precision, global_contrastive, unit
from diptych.objectives._tokens import image_token_width
from diptych.text import TOKENIZERS
from diptych.types import Batch, Pairs, Terms


@dataclass(frozen=True)
class SuperClipConfig(ObjectiveOptions):
    """Options of the SuperCLIP objective."""

    objective: str = "superclip"
    superclip_weight: NotNegative = 1.0
    """Weight of the classification beside the contrastive loss; the published code's is 1."""


class TokenFeatures(NamedTuple):
    """``image``, ``text`` [B, D] of unit length, ``mean`` [B, width] of the image's tokens; ``tokens`` [B, L]."""

    image: Tensor
    text: Tensor
    mean: Tensor
    tokens: Tensor
    lengths: Tensor


@OBJECTIVES.register("superclip")
class SuperClip(Objective):
    """Contrastive, and the classification of each image into its caption's tokens."""

    Config = SuperClipConfig
    config: SuperClipConfig
    cacheable = False
    document_counts: Tensor
    documents: Tensor
    special: Tensor

    def __init__(self, config: SuperClipConfig, model: TwoTower, load: LoadModel | None = None) -> None:
        super().__init__(config, model, load)
        if model.image in model.locked:
            raise ConfigError(
                "--objective superclip teaches the image tower, which --lock-image locks; leave one of them out."
            )
        vocabulary = model.config.text.vocab_size
        self.classifier = nn.Linear(image_token_width(model, "superclip classifies by"), vocabulary)
        self.register_buffer("document_counts", torch.zeros(vocabulary, dtype=torch.int64))
        self.register_buffer("documents", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("special", torch.tensor(_special_ids(model), dtype=torch.int64), persistent=False)

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """A ViT, a ResNet, and SigLIP's towers with their tokenizer, which has no start token."""
        return (
            Example(SuperClipConfig(), "tiny-test"),
            Example(SuperClipConfig(superclip_weight=0.5), "tiny-test-resnet"),
            Example(SuperClipConfig(), "tiny-test-siglip"),
        )

    def encode(self, batch: Batch, frozen: Any = None) -> TokenFeatures:
        """Features of the first image view and the first text view, and the ids of the latter."""
        image, text = self.encode_images(batch, return_tokens=True), self.encode_texts(batch)
        assert image.tokens is not None
        mean = full_precision(image.tokens).mean(dim=1)
        return TokenFeatures(unit(image.pooled), unit(text.pooled), mean, batch.tokens[0], batch.lengths[0])

    def compare_parameters(self) -> list[nn.Parameter]:
        """The scale, and the linear layer."""
        return [*super().compare_parameters(), *self.classifier.parameters()]

    def compare(self, features: TokenFeatures, pairs: Pairs) -> Terms:
        """``contrastive`` and ``classification``, both means over this process's pairs, in nats."""
        loss, metrics = global_contrastive(Features(features.image, features.text), self.model.logit_scale, self.group)
        bags = self._bags(features)
        counts, documents = self._counted(bags)
        kind = features.mean.dtype
        weights = torch.log((documents + 1).to(kind) / (counts + 1).to(kind))
        targets = F.normalize(bags * weights, p=1.0, dim=1)
        classification = F.cross_entropy(full_precision(self.classifier(features.mean)), targets)
        return Terms({"contrastive": loss, "classification": self.config.superclip_weight * classification}, metrics)

    def after_step(self, features: TokenFeatures, pairs: Pairs) -> None:
        """The captions of the step are counted."""
        counts, documents = self._counted(self._bags(features))
        self.document_counts.copy_(counts)
        self.documents.copy_(documents)

    def validation_terms(self, batch: Batch) -> Terms:
        """The contrastive loss alone, as of ``clip``: the linear layer is no part of the model that is evaluated."""
        features = Features(unit(self.encode_images(batch).pooled), unit(self.encode_texts(batch).pooled))
        loss, metrics = global_contrastive(features, self.model.logit_scale, self.group)
        return Terms({"contrastive": loss}, metrics)

    def _bags(self, features: TokenFeatures) -> Tensor:
        """bool [B, vocabulary]: which tokens each caption holds; neither padding nor special ones."""
        positions = torch.arange(features.tokens.shape[1], device=features.tokens.device)
        vocabulary = len(self.document_counts)
        # What is no word goes into one more column, which is cut off.
        ids = torch.where(positions < features.lengths[:, None], features.tokens, vocabulary)
        bags = torch.zeros(len(ids), vocabulary + 1, dtype=torch.bool, device=ids.device).scatter_(1, ids, True)
        return bags.index_fill_(1, self.special, False)[:, :vocabulary]

    def _counted(self, bags: Tensor) -> tuple[Tensor, Tensor]:
        """Captions with each token, int64 [vocabulary], and captions, int64 [1], these of all processes included."""
        own = torch.cat([bags.sum(dim=0), bags.new_full((1,), len(bags), dtype=torch.int64)])
        everything = gather(own[None], self.group).sum(dim=0)
        return self.document_counts + everything[:-1], self.documents + everything[-1:]


def _special_ids(model: TwoTower) -> list[int]:
    """Ids of the vocabulary that begin or end a text; one that is not known here is in every caption, and so weighs nothing."""
    text = model.config.text
    tokenizer = TOKENIZERS.get(text.tokenizer)
    ids = {
        getattr(tokenizer, name, None) if own is None else own
        for name, own in (("start_id", text.start_id), ("end_id", text.end_id))
    }
    return sorted(number for number in ids if number is not None and 0 <= number < text.vocab_size)
