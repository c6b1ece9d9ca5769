"""The contrastive loss of CLIP (Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision").

Symmetric cross-entropy over cosine similarities times a learned scale: every image must find its caption among all
captions of the global batch, and every caption its image. Computed in fp32 whatever the towers ran in. Not the sigmoid
loss (SigLIP), and no multi-positive targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.distributed.gather import gather, gather_with_gradient, rank_offset
from diptych.errors import ConfigError
from diptych.models import TwoTower
from diptych.objectives import OBJECTIVES, Objective, ObjectiveOptions
from diptych.objectives._tiles import tiled_cross_entropy
from diptych.types import Batch, Terms, Wants

MATRIX_LIMIT = 1 << 20  # similarities that are held at once; more are computed in tiles


@dataclass(frozen=True)
class ClipConfig(ObjectiveOptions):
    """Options of the CLIP objective."""

    local_loss: bool = True
    """Under torchrun, score only this process's rows against all columns: same gradient, less memory."""
    gather_with_grad: bool = True
    """Let gradients cross processes, which is what makes many processes equal one."""


class Features(NamedTuple):
    """Unit-length features: ``image`` [B, D], ``text`` [B, D]."""

    image: Tensor
    text: Tensor


@OBJECTIVES.register("clip")
class Clip(Objective):
    """CLIP's contrastive loss as an objective."""

    Config = ClipConfig
    wants = Wants()
    config: ClipConfig

    def __init__(self, config: ClipConfig, model: TwoTower) -> None:
        if config.local_loss and not config.gather_with_grad:
            raise ConfigError(
                "--local-loss without --gather-with-grad gives wrong gradients; add --gather-with-grad, or --no-local-loss."
            )
        super().__init__(config, model)

    def encode(self, batch: Batch) -> Features:
        """Unit features [B, D] of the first image view and the first text view."""
        known = batch.image_features
        image = self.model.image(batch.images[0]).pooled if known is None else known
        text = self.model.text(batch.tokens[0], batch.lengths[0]).pooled
        return Features(F.normalize(_full(image), dim=-1), F.normalize(_full(text), dim=-1))

    def compare(self, features: Features, batch: Batch) -> Terms:
        """``contrastive``: the mean over this process's pairs of both directions' cross-entropy, in nats."""
        image, text = features.image, features.text
        all_image, all_text = self._gathered(image), self._gathered(text)
        rows = rank_offset(len(image))
        if not self.config.local_loss:
            image, text, rows = all_image, all_text, 0
        scale = _full(self.model.logit_scale).exp()
        loss, correct = contrastive(Features(image, text), Features(all_image, all_text), scale, rows)
        return Terms({"contrastive": loss}, {"logit_scale": scale.detach(), "batch_accuracy": correct})

    def _gathered(self, local: Tensor) -> Tensor:
        if self.config.gather_with_grad:
            return gather_with_gradient(local)
        everything = gather(local.detach())
        start = rank_offset(len(local))
        return torch.cat([everything[:start], local, everything[start + len(local) :]])


def contrastive(rows: Features, columns: Features, scale: Tensor, offset: int = 0) -> tuple[Tensor, Tensor]:
    """CLIP's loss of R local pairs against N pairs of the global batch, and the share of rows whose own caption won.

    ``rows`` [R, D] and ``columns`` [N, D] have unit length; ``scale`` [1] is already exponentiated; the pair of row i is
    column ``offset + i``. Both results are scalars.
    """
    count = len(rows.image)
    # Autocast would round the similarities to half precision, which at a scale of 100 is a whole nat.
    with torch.autocast(rows.image.device.type, enabled=False):
        # When the rows are all there is, both directions share one product.
        whole = count == len(columns.image)
        if count * len(columns.image) <= MATRIX_LIMIT:
            return _plain(rows, columns, scale, offset)
        loss, correct = tiled_cross_entropy(rows.image, columns.text, scale, offset, both=whole)
        if not whole:
            loss = loss + tiled_cross_entropy(rows.text, columns.image, scale, offset)[0]
    return loss / (2 * count), correct.float() / count


def _plain(rows: Features, columns: Features, scale: Tensor, offset: int) -> tuple[Tensor, Tensor]:
    """The loss with the whole matrix of similarities in memory: fastest while that is small."""
    own = torch.arange(len(rows.image), device=rows.image.device) + offset
    by_image = scale * rows.image @ columns.text.T
    by_text = by_image.T if len(rows.image) == len(columns.image) else scale * rows.text @ columns.image.T
    loss = (F.cross_entropy(by_image, own) + F.cross_entropy(by_text, own)) / 2
    return loss, (by_image.detach().argmax(dim=1) == own).float().mean()


def _full(tensor: Tensor) -> Tensor:
    """At least fp32, whatever the towers ran in; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
