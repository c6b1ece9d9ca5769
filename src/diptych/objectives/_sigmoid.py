"""SigLIP's sigmoid loss (Zhai et al. 2023) over a ring of processes, in tiles, with its gradient made in the forward pass.

    loss = mean over images i of the sum over texts j of -log sigmoid(y_ij (s a_i . t_j + b)),   y_ii = 1, else -1

Each process holds its own images and the texts of one process at a time: texts travel around the ring, and the gradient of each
travels with it, until it is home. A tile of similarities is used while it is in the cache: for the loss, and for the gradients of
images, texts, scale and bias, which the backward pass only multiplies. No cross-entropy is needed for that: the derivative of a
pair's loss depends on nothing but its own similarity. The plain form, the whole matrix and autograd, is in the tests.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from diptych.distributed.gather import passed_on
from diptych.distributed.process_group import Group, rank, size
from diptych.objectives import _tiles
from diptych.objectives._tiles import LOWEST


def sigmoid(
    image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, group: Group = None, *, classes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The loss of this process's B images with the texts of all, in nats, and the share of images whose own text won; scalars.

    ``image`` and ``text`` [B, D] have unit length; ``scale`` [1] is already exponentiated, ``bias`` [1]; image i belongs to text
    i. ``classes`` int64 [W*B]: texts of a pair's own class, but for its own, are left out of the sum, and cannot win. A
    collective: every process brings the same B, and weighs its loss by the same factor. Differentiable once.
    """
    with torch.autocast(image.device.type, enabled=False):
        differentiable = torch.is_grad_enabled() and any(item.requires_grad for item in (image, text, scale, bias))
        loss, correct = _Ring.apply(image, text, scale, bias, group, classes, differentiable)
    return loss, correct


class _Gradients(NamedTuple):
    """Sums over pairs of a similarity's derivative times what it multiplies: of images and texts [B, D], and of the bias [1]."""

    image: Tensor
    text: Tensor
    bias: Tensor


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        image, text, scale, bias, group, classes, differentiable = inputs
        ring, own = size(group), rank(group)
        loss, to_image, to_bias = image.new_zeros(()), torch.zeros_like(image), torch.zeros_like(bias)
        mine, won = loss, torch.ones(len(image), dtype=torch.bool, device=image.device)
        chunk, travelling = text.detach().contiguous(), None
        for step in range(ring):
            owner = (own - step) % ring
            following = passed_on(chunk, group) if step < ring - 1 else None
            into = _Gradients(to_image, torch.zeros_like(text), to_bias) if differentiable else None
            part, best = _compared(image, chunk, (scale, bias), (own, owner), classes=classes, into=into)
            loss += part
            if step == 0:
                mine, won = best
            else:  # of equal similarities the first text wins
                won &= (best[1] < mine) if owner < own else (best[1] <= mine)
            if into is not None:
                into.text.add_(0 if travelling is None else travelling)
                travelling = passed_on(into.text, group)()
            chunk = chunk if following is None else following()
        count = len(image)
        if differentiable:
            # The sum of derivatives times similarities is that of the images' gradients times the images.
            to_scale = (to_image * image).sum().reshape(scale.shape) / count
            ctx.save_for_backward(to_image * (scale / count), travelling * (scale / count), to_scale, to_bias / count)
        correct = won.float().mean()
        ctx.mark_non_differentiable(correct)
        return loss / count, correct

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*(item * gradient for item in ctx.saved_tensors), None, None, None)


def _compared(
    image: Tensor,
    text: Tensor,
    scale_and_bias: tuple[Tensor, Tensor],
    ranks: tuple[int, int],
    *,
    classes: Tensor | None,
    into: _Gradients | None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The summed loss of images [B, D] of one rank with texts [B, D] of another; gradients are added to ``into``.

    Also, of a rank's own texts: (the similarity of each pair [B], whether it wins, bool [B]); of others': (anything, the largest
    similarity of each image [B]).
    """
    scale, bias = scale_and_bias
    count, own = len(image), ranks[0] == ranks[1]
    loss, most, mine = image.new_zeros(()), image.new_empty(count), image.new_empty(count)
    won = torch.empty(count, dtype=torch.bool, device=image.device)
    tile = max(1, _tiles.TILE // max(1, len(text)))
    for start in range(0, count, tile):
        rows = slice(start, min(start + tile, count))
        logits = torch.addmm(bias, image[rows] * scale, text.T)
        diagonal = logits[:, rows].diagonal() if own else None
        if classes is not None:
            _leave_out(logits, diagonal, classes, rows, ranks)
        if diagonal is None:
            most[rows] = logits.amax(dim=1)
        else:
            won[rows] = logits.argmax(dim=1) == torch.arange(rows.start, rows.stop, device=image.device)
            mine[rows] = diagonal
            diagonal.neg_()
        loss += F.softplus(logits).sum()
        if into is not None:
            logits.sigmoid_()
            if diagonal is not None:
                diagonal.neg_()
            into.image[rows].addmm_(logits, text)
            into.text.addmm_(logits.T, image[rows])
            into.bias.add_(logits.sum())
    return loss, (mine, won if own else most)


def _leave_out(logits: Tensor, diagonal: Tensor | None, classes: Tensor, rows: slice, ranks: tuple[int, int]) -> None:
    """Make the logits of other pairs' texts of a row's class so low that they cost nothing."""
    of_ranks = classes.chunk(len(classes) // logits.shape[1])
    same = of_ranks[ranks[0]][rows, None] == of_ranks[ranks[1]]
    if diagonal is not None:
        same[:, rows].fill_diagonal_(False)
    logits.masked_fill_(same, LOWEST)
