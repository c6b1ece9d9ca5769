"""Formulas that several objectives share: pure functions of features, computed in fp32 or more whatever the towers ran in.

CLIP's symmetric cross-entropy (Radford et al. 2021) of this process's rows against the columns of all. No module, no parameter,
no option; gathering is asked for explicitly. SigLIP's loss gathers nothing, and is in ``_sigmoid``.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.distributed.gather import gather, gather_with_gradient, rank_offset
from diptych.distributed.process_group import Group
from diptych.objectives._tiles import LOWEST, others_of_class, tiled_cross_entropy

MATRIX_LIMIT = 1 << 20  # similarities that are held at once; more are computed in tiles

PUBLISHED_SCALE = (3.0, 6.0)
"""Least and most of the scale's logarithm after every step in DeCLIP's repository, which trains SLIP and FILIP too."""

FAMILY_SCALE = (3.0, math.log(100.0))
"""The same, under CLIP's limit of 100."""


class Features(NamedTuple):
    """Unit-length features of pairs: ``image`` [B, D], ``text`` [B, D]."""

    image: Tensor
    text: Tensor


class Paired(Protocol):
    """Whatever has ``Features``' two fields."""

    @property
    def image(self) -> Tensor:
        """Unit-length features [B, D] of images."""

    @property
    def text(self) -> Tensor:
        """Unit-length features [B, D] of texts."""


def unit(features: Tensor) -> Tensor:
    """Features [B, D] of unit length, in full precision."""
    return F.normalize(full_precision(features), dim=-1)


def full_precision(tensor: Tensor) -> Tensor:
    """At least fp32; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def global_contrastive(features: Features, log_scale: Tensor, group: Group) -> tuple[Tensor, dict[str, Tensor]]:
    """CLIP's loss of this process's pairs against those of all, as a scalar in nats, and the metrics that ``clip`` logs.

    ``features`` [B, D] are this process's; ``log_scale`` [1]. Gradients cross processes.
    """
    everything = Features(*(gathered(item, group) for item in features))
    scale = full_precision(log_scale).exp()
    loss, correct = contrastive(features, everything, scale, rank_offset(len(features.image), group))
    return loss, {"logit_scale": scale.detach(), "batch_accuracy": correct}


def gathered(local: Tensor, group: Group, with_gradient: bool = True) -> Tensor:
    """[B, ...] of each process -> [W*B, ...]; without ``with_gradient``, only this process's own rows carry gradient."""
    if with_gradient:
        return gather_with_gradient(local, group)
    everything = gather(local.detach(), group)
    start = rank_offset(len(local), group)
    return torch.cat([everything[:start], local, everything[start + len(local) :]])


def contrastive(
    rows: Paired, columns: Paired, scale: Tensor, offset: int = 0, *, classes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """CLIP's loss of R local pairs against N pairs of the global batch, and the share of rows whose own caption won.

    ``rows`` [R, D] and ``columns`` [N, D] have unit length; ``scale`` [1] is already exponentiated; the pair of row i is
    column ``offset + i``. The loss is the mean over rows of both directions' cross-entropy, in nats; both results are scalars.
    ``classes`` int64 [N]: columns of a row's own class, but for its own, are left out of its cross-entropy, and cannot win.
    """
    count = len(rows.image)
    # Autocast would round the similarities to half precision, which at a scale of 100 is a whole nat.
    with torch.autocast(rows.image.device.type, enabled=False):
        # When the rows are all there is, both directions share one product.
        whole = count == len(columns.image)
        if count * len(columns.image) <= MATRIX_LIMIT:
            return _contrastive_matrix(rows, columns, scale, offset, classes)
        loss, correct = tiled_cross_entropy(rows.image, columns.text, scale, offset, both=whole, classes=classes)
        if not whole:
            loss = loss + tiled_cross_entropy(rows.text, columns.image, scale, offset, classes=classes)[0]
    return loss / (2 * count), correct.float() / count


def _contrastive_matrix(
    rows: Paired, columns: Paired, scale: Tensor, offset: int, classes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss with the whole matrix of similarities in memory: fastest while that is small."""
    own = torch.arange(len(rows.image), device=rows.image.device) + offset
    by_image = scale * rows.image @ columns.text.T
    by_text = by_image.T if len(rows.image) == len(columns.image) else scale * rows.text @ columns.image.T
    if classes is not None:
        others = others_of_class(classes, own)
        by_image, by_text = (item.masked_fill(others, LOWEST) for item in (by_image, by_text))
    loss = (F.cross_entropy(by_image, own) + F.cross_entropy(by_text, own)) / 2
    return loss, (by_image.detach().argmax(dim=1) == own).float().mean()


def row_contrastive(
    rows: Tensor, columns: Tensor, scale: Tensor, offset: int = 0, *, classes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One direction of ``contrastive``: the mean over R rows of the cross-entropy of ``scale * rows @ columns.T``, in nats, and
    the share of rows whose own column, ``offset + i``, won.

    ``rows`` [R, D] and ``columns`` [N, D] of unit length, ``scale`` [1]; ``classes`` as there. Both results are scalars.
    """
    with torch.autocast(rows.device.type, enabled=False):
        own = torch.arange(len(rows), device=rows.device) + offset
        if len(rows) * len(columns) > MATRIX_LIMIT:
            loss, correct = tiled_cross_entropy(rows, columns, scale, offset, classes=classes)
            return loss / len(rows), correct.to(loss.dtype) / len(rows)
        logits = scale * rows @ columns.T
        if classes is not None:
            logits = logits.masked_fill(others_of_class(classes, own), LOWEST)
        return F.cross_entropy(logits, own), (logits.detach().argmax(dim=1) == own).to(logits.dtype).mean()
