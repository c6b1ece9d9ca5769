"""open_clip's ``loss``: CLIP's, SigLIP's and distillation's losses as modules of features, alone or under torch.distributed.

Written for programs that have their own training loop: plain formulas in the features' own precision, as there. Diptych's
objectives (``diptych.objectives``) compute in fp32 at least, in tiles, and are what ``diptych train`` uses.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.distributed.gather import all_reduce_with_gradient, gather, gather_with_gradient
from diptych.distributed.process_group import rank as own_rank
from diptych.distributed.process_group import size
from diptych.errors import ConfigError, DistributedError
from diptych.open_clip._absent import CoCaLoss
from diptych.open_clip._errors import InvalidError
from diptych.open_clip._exchange import (
    NeighbourExchange,
    NeighbourExchangeBidir,
    neighbour_exchange,
    neighbour_exchange_bidir,
    neighbour_exchange_bidir_with_grad,
    neighbour_exchange_with_grad,
)

__all__ = [
    "ClipLoss",
    "CoCaLoss",
    "DistillClipLoss",
    "NeighbourExchange",
    "NeighbourExchangeBidir",
    "SigLipLoss",
    "gather_features",
    "neighbour_exchange",
    "neighbour_exchange_bidir",
    "neighbour_exchange_bidir_with_grad",
    "neighbour_exchange_with_grad",
]

IMPLEMENTATIONS = ("bidir", "shift", "reduce", "gather")


def _no_horovod(use_horovod: bool) -> None:
    if use_horovod:
        raise ConfigError("use_horovod was given; horovod is not here: run under torchrun, with torch.distributed.")


def _check_group(rank: int, world_size: int) -> None:
    # Labels would be wrong without a word.
    if (size(), own_rank()) != (world_size, rank):
        raise DistributedError(
            f"the loss was made for rank {rank} of {world_size}; this process is rank {own_rank()} of {size()}: start it with"
            " torchrun, and give the loss the rank and world size of torch.distributed."
        )


def gather_features(
    image_features: Tensor,
    text_features: Tensor,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    rank: int = 0,
    world_size: int = 1,
    use_horovod: bool = False,
) -> tuple[Tensor, Tensor]:
    """[B, D] of each process -> [world_size * B, D], images and texts, in rank order.

    Gradients reach all processes with ``gather_with_grad``, else this process's own rows; none with ``local_loss`` alone.
    """
    _no_horovod(use_horovod)
    _check_group(rank, world_size)
    if gather_with_grad:
        return gather_with_gradient(image_features), gather_with_gradient(text_features)
    everything = [gather(features.detach()) for features in (image_features, text_features)]
    if not local_loss:
        everything = [
            torch.cat([local if number == rank else part for number, part in enumerate(whole.chunk(world_size))])
            for whole, local in zip(everything, (image_features, text_features), strict=True)
        ]
    return everything[0], everything[1]


class ClipLoss(nn.Module):
    """Mean of the cross-entropies of images among texts and of texts among images (Radford et al. 2021).

    ``local_loss`` scores this process's rows only; with it, ``gather_with_grad`` is what makes the gradient the whole batch's.
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ) -> None:
        super().__init__()
        _no_horovod(use_horovod)
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels
        self.rank, self.world_size, self.use_horovod = rank, world_size, use_horovod
        self.prev_num_logits = 0
        self.labels: dict[torch.device, Tensor] = {}

    def get_ground_truth(self, device: torch.device, num_logits: int) -> Tensor:
        """The column of each row's own pair, int64 [num_logits]."""
        if self.prev_num_logits == num_logits and device in self.labels:
            return self.labels[device]
        offset = num_logits * self.rank if self.world_size > 1 and self.local_loss else 0
        labels = torch.arange(offset, offset + num_logits, device=device)
        if self.cache_labels:
            self.labels[device], self.prev_num_logits = labels, num_logits
        return labels

    def get_logits(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Any, logit_bias: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Scaled similarities, by image and by text: [B, N] each with ``local_loss``, else [N, N]."""
        images, texts = image_features, text_features
        if self.world_size > 1:
            options = (self.local_loss, self.gather_with_grad, self.rank, self.world_size)
            images, texts = gather_features(image_features, text_features, *options)
        if self.world_size > 1 and not self.local_loss:
            by_image = logit_scale * images @ texts.T
            by_text = by_image.T
        else:
            by_image = logit_scale * image_features @ texts.T
            by_text = logit_scale * text_features @ images.T
        return (by_image, by_text) if logit_bias is None else (by_image + logit_bias, by_text + logit_bias)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Any,
        logit_bias: Any = None,
        output_dict: bool = False,
    ) -> Any:
        """Unit features [B, D] and the exponentiated scale -> a scalar in nats, or {"contrastive_loss": it}."""
        loss = self._contrastive(*self.get_logits(image_features, text_features, logit_scale, logit_bias))
        return {"contrastive_loss": loss} if output_dict else loss

    def _contrastive(self, by_image: Tensor, by_text: Tensor) -> Tensor:
        labels = self.get_ground_truth(by_image.device, by_image.shape[0])
        return (F.cross_entropy(by_image, labels) + F.cross_entropy(by_text, labels)) / 2


class DistillClipLoss(ClipLoss):
    """CLIP's loss, and the cross-entropy of a teacher's similarities with the student's (Hinton et al. 2015)."""

    def dist_loss(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """The mean over rows of the cross-entropy of two softmaxes, in nats."""
        return -(teacher_logits.softmax(dim=1) * student_logits.log_softmax(dim=1)).sum(dim=1).mean(dim=0)

    def forward(  # type: ignore[override]
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Any,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: Any,
        output_dict: bool = False,
    ) -> Any:
        """Features of the student and of the teacher -> the two losses, as a tuple or as contrastive_loss, distill_loss."""
        student = self.get_logits(image_features, text_features, logit_scale)
        teacher = self.get_logits(dist_image_features, dist_text_features, dist_logit_scale)
        contrastive = self._contrastive(*student)
        by_image, by_text = (self.dist_loss(theirs, own) for theirs, own in zip(teacher, student, strict=True))
        distill = (by_image + by_text) / 2
        return {"contrastive_loss": contrastive, "distill_loss": distill} if output_dict else (contrastive, distill)


class SigLipLoss(nn.Module):
    """The sigmoid loss (Zhai et al. 2023): each image and text is a question of its own, yes for a pair, no for others.

    ``dist_impl`` says how texts of other processes come: bidir and shift around a ring, reduce and gather by collectives.
    ``cache_labels`` changes nothing, as in open_clip: labels are two operations.
    """

    def __init__(
        self, cache_labels: bool = False, rank: int = 0, world_size: int = 1, dist_impl: str | None = None
    ) -> None:
        super().__init__()
        self.cache_labels, self.rank, self.world_size = cache_labels, rank, world_size
        self.dist_impl = dist_impl or "bidir"
        if self.dist_impl not in IMPLEMENTATIONS:
            raise InvalidError(f"dist_impl {dist_impl!r} was given; expected one of {', '.join(IMPLEMENTATIONS)}.")
        self.prev_num_logits = 0
        self.labels: dict[torch.device, Tensor] = {}

    def get_ground_truth(
        self, device: torch.device, dtype: torch.dtype, num_logits: int, negative_only: bool = False
    ) -> Tensor:
        """1 for a pair and -1 for others, [num_logits, num_logits]; all -1 with ``negative_only``."""
        labels = -torch.ones((num_logits, num_logits), device=device, dtype=dtype)
        return labels if negative_only else labels.fill_diagonal_(1)

    def get_logits(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Any, logit_bias: Any = None
    ) -> Tensor:
        """Scaled similarities [images, texts], plus the bias."""
        logits = logit_scale * image_features @ text_features.T
        return logits if logit_bias is None else logits + logit_bias

    def _loss(self, images: Tensor, texts: Tensor, scale_and_bias: tuple[Any, Any], negative_only: bool) -> Tensor:
        logits = self.get_logits(images, texts, *scale_and_bias)
        labels = self.get_ground_truth(images.device, images.dtype, images.shape[0], negative_only)
        return -F.logsigmoid(labels * logits).sum() / images.shape[0]

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Any,
        logit_bias: Any,
        output_dict: bool = False,
    ) -> Any:
        """Unit features [B, D], the exponentiated scale, the bias -> a scalar in nats, or {"contrastive_loss": it}."""
        scale_and_bias = (logit_scale, logit_bias)
        loss = self._loss(image_features, text_features, scale_and_bias, negative_only=False)
        if self.world_size > 1:
            _check_group(self.rank, self.world_size)
            for texts, weight in self._texts_of_others(text_features):
                loss = loss + weight * self._loss(image_features, texts, scale_and_bias, negative_only=True)
        return {"contrastive_loss": loss} if output_dict else loss

    def _texts_of_others(self, texts: Tensor) -> list[tuple[Tensor, float]]:
        """Texts of each other process, with weight 1; collectives also give this process's own, with weight 0."""
        ranks = range(self.world_size)
        if self.dist_impl == "gather":
            everything = gather_with_gradient(texts).chunk(self.world_size)
            return [(everything[rank], float(rank != self.rank)) for rank in ranks]
        if self.dist_impl == "reduce":
            # Every process takes part in every sum's way back, so its own stays in the graph.
            return [(all_reduce_with_gradient(texts * (self.rank == rank)), float(rank != self.rank)) for rank in ranks]
        return [(received, 1.0) for received in self._texts_around_the_ring(texts)]

    def _texts_around_the_ring(self, texts: Tensor) -> list[Tensor]:
        left, right = (self.rank - 1) % self.world_size, (self.rank + 1) % self.world_size
        both_ways, single = divmod(self.world_size - 1, 2) if self.dist_impl == "bidir" else (0, self.world_size - 1)
        received: list[Tensor] = []
        to_left = to_right = texts
        for _ in range(both_ways):
            to_left, to_right = neighbour_exchange_bidir_with_grad(left, right, to_left, to_right)
            received += [to_left, to_right]
        for _ in range(single):
            to_right = neighbour_exchange_with_grad(left, right, to_right)
            received.append(to_right)
        return received
