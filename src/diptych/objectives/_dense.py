"""FILIP's token-wise late interaction (Yao et al. 2022, "FILIP: Fine-grained Interactive Language-Image Pre-Training").

Every image token finds the nearest word token of a caption, and every word token the nearest image token. With a_in the unit
tokens of image i, w_lm the real unit tokens of caption l, and m only over the k of them that are selected for the pair l itself:

    image_il = mean over n of max over m of a_in . w_lm;    text_li = mean over m of max over n of w_lm . a_in
    loss = (cross-entropy of s * image + cross-entropy of s * text) / 2,   s = exp(log_scale_dense), own column i

Selected are the tokens whose similarities to all of the own pair's tokens have the largest sum (DeCLIP's code base: k 16). They
alone cross processes, with gradient. The B x N x (pairs x k) similarities are never held: tiles of them are reduced to a maximum
and its index, one byte each, from which the gradient is made without the similarities. No objective, no view, no option here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from diptych.distributed.gather import gather_with_gradient, rank_offset
from diptych.distributed.process_group import Group
from diptych.objectives._terms import full_precision, unit
from diptych.types import Encoded

TOP_K, MOST_TOP_K = 16, 255  # an index of a selected token fits in a byte
DENSE_WIDTH = 256
CPU_TILE = 1 << 18  # similarities at once: what a core's cache holds
DEVICE_TILE = 1 << 24  # and what keeps an accelerator busy


class DenseTokens(NamedTuple):
    """Unit-length tokens of pairs: ``image`` [B, N, E], ``text`` [B, L, E], ``real`` bool [B, L], False for padding."""

    image: Tensor
    text: Tensor
    real: Tensor


class TokenMaps(nn.Module):
    """Two linear layers with bias, which take image tokens [B, N, W] and word tokens [B, L, V] to a common width E."""

    def __init__(self, image_width: int, text_width: int, width: int = DENSE_WIDTH) -> None:
        super().__init__()
        self.image = nn.Linear(image_width, width)
        self.text = nn.Linear(text_width, width)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, W] and [B, L, V] -> [B, N, E] and [B, L, E], not normalized."""
        return self.image(image), self.text(text)


def token_features(maps: TokenMaps, image: Encoded, text: Encoded) -> DenseTokens:
    """The mapped tokens of both towers, which were called with ``return_tokens``, in full precision and of unit length."""
    assert image.tokens is not None and text.tokens is not None and text.mask is not None
    image_tokens, text_tokens = maps(image.tokens, text.tokens)
    return DenseTokens(unit(image_tokens), unit(text_tokens), text.mask)


def whole_context(tokens: Tensor, context_length: int, pad_id: int = 0) -> Tensor:
    """Ids int64 [B, L] padded to the whole context, [B, context_length]: what ``compat`` wants of the text tower.

    A causal tower computes a feature for padding too: position p behind the end token attends to the whole caption and to the
    padding up to p, so that padding features say the caption once more, seen from a position that no real word has.
    """
    return F.pad(tokens, (0, context_length - tokens.shape[1]), value=pad_id)


def dense_contrastive(
    tokens: DenseTokens, log_scale_dense: Tensor, group: Group, top_k: int = TOP_K, compat: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of this process's pairs against those of all, a scalar in nats, and metrics: the scale and the accuracy.

    ``tokens`` are this process's; ``log_scale_dense`` [1]. Padding is neither selected nor averaged; a caption with fewer real
    tokens than ``top_k`` (at most 255) is compared by those that it has; one without any has similarity 0 to everything.
    ``compat``: the published rule, padding counts as words (of a batch that ``whole_context`` padded). A collective.
    """
    with torch.autocast(tokens.image.device.type, enabled=False):
        real = torch.ones_like(tokens.real) if compat else tokens.real
        tokens = DenseTokens(full_precision(tokens.image), full_precision(tokens.text), real)
        chosen_images, chosen_texts = (gather_with_gradient(item, group) for item in selected(tokens, top_k))
        scale = full_precision(log_scale_dense).exp()
        every, size = torch.full((len(real),), tokens.image.shape[1], device=real.device), tokens.image.shape[1]
        by_image = scale * _LateInteraction.apply(tokens.image.flatten(0, 1), every, chosen_texts, (size, None))
        by_text = scale * _LateInteraction.apply(*_token_rows(tokens.text, real), chosen_images, _layout(real))
        own = torch.arange(len(real), device=real.device) + rank_offset(len(real), group)
        loss = (F.cross_entropy(by_image, own) + F.cross_entropy(by_text, own)) / 2
        correct = (by_image.detach().argmax(dim=1) == own).float().mean()
    return loss, {"logit_scale_dense": scale.detach(), "dense_accuracy": correct}


def _token_rows(text: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The word tokens as rows, and how many of each pair are real: on a CPU these alone, elsewhere padding too."""
    return text[real] if real.is_cpu else text.flatten(0, 1), real.sum(dim=1)


def _layout(real: Tensor) -> tuple[int | None, Tensor | None]:
    """How many rows of ``_token_rows`` each pair has, and which of them count: None where the lengths themselves say so."""
    return (None, None) if real.is_cpu else (real.shape[1], real.flatten())


def selected(tokens: DenseTokens, top_k: int) -> tuple[Tensor, Tensor]:
    """The k best tokens of each pair, with gradient: of images [B, min(k, N), E] and of words [B, k, E].

    Best are those with the largest sum of similarities to the real tokens of the pair's other side; of equal ones the first. A
    caption with fewer than k repeats its best, which changes no maximum; one without real tokens has zeros.
    """
    image, text, real = tokens
    with torch.no_grad():
        # The sum of a row of the pair's similarity matrix is the product with the sum of the other side's tokens.
        text_sum = (text * real[..., None]).sum(dim=1, keepdim=True)
        image_order = _descending((image * text_sum).sum(dim=2))
        sums = (text * image.sum(dim=1, keepdim=True)).sum(dim=2)
        text_order = _descending(sums.masked_fill(~real, -torch.inf))[:, :top_k]
        text_order = F.pad(text_order, (0, top_k - text_order.shape[1]))
        lacking = torch.arange(top_k, device=real.device) >= real.sum(dim=1, keepdim=True)
        text_order = torch.where(lacking, text_order[:, :1], text_order)
    chosen_texts = _rows(text, text_order) * real.any(dim=1)[:, None, None]
    return _rows(image, image_order[:, :top_k]), chosen_texts


def _descending(sums: Tensor) -> Tensor:
    return torch.argsort(sums, dim=1, descending=True, stable=True)


def _rows(tokens: Tensor, order: Tensor) -> Tensor:
    return tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))


class _LateInteraction(torch.autograd.Function):
    """Mean over the R tokens of each of B pairs of the largest similarity to the k tokens of each of C pairs: [B, C].

    ``rows`` [R, E] hold the tokens of one pair after those of another, ``lengths`` int64 [B] how many of each count; ``columns``
    [C, k, E]. ``layout``: how many rows each pair has, and which of all rows count, bool [R] (None: all); without a number the
    lengths say how many rows there are, for which the host waits.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, lengths: Tensor, columns: Tensor, layout: tuple[int | None, Tensor | None]
    ) -> Tensor:
        size, real = layout
        counts = _counts(lengths, size)
        by_rank = columns.transpose(0, 1).contiguous()  # [k, C, E]
        winner = torch.zeros(len(rows), len(columns), dtype=torch.uint8, device=rows.device)
        means = rows.new_zeros(len(counts), len(columns))
        for pairs, part in _blocks(counts, len(columns), rows.device):
            best = rows[part] @ by_rank[0].T
            other = torch.empty_like(best)
            for number in range(1, len(by_rank)):
                torch.mm(rows[part], by_rank[number].T, out=other)
                winner[part].masked_fill_(other > best, number)
                torch.maximum(best, other, out=best)
            if real is not None and size is not None:
                sums = best.masked_fill_(~real[part, None], 0).unflatten(0, (-1, size)).sum(dim=1)
                means[pairs] = sums / lengths[pairs, None].clamp(min=1)
            else:
                means[pairs] = _means(best, lengths[pairs])
        ctx.save_for_backward(rows, lengths, by_rank, winner, real)
        ctx.size = size
        return means

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, None]:
        rows, lengths, by_rank, winner, real = ctx.saved_tensors
        to_rows, to_columns = torch.empty_like(rows), torch.zeros_like(by_rank)
        shares = gradient / lengths.clamp(min=1)[:, None]
        flat, column = by_rank.flatten(0, 1), torch.arange(len(gradient.T), dtype=torch.int32, device=rows.device)
        for pairs, part in _blocks(_counts(lengths, ctx.size), len(column), rows.device):
            weights = shares[pairs].repeat_interleave(lengths[pairs] if ctx.size is None else ctx.size, dim=0)
            if real is not None:
                weights = weights * real[part, None]
            # Of k products with a row one counts: summing C vectors by their numbers is 5 times as fast as the k dense products.
            chosen = winner[part].int() * len(column) + column
            to_rows[part] = F.embedding_bag(chosen, flat, per_sample_weights=weights, mode="sum")
            for number in range(len(by_rank)):
                to_columns[number].addmm_((weights * (winner[part] == number)).T, rows[part])
        return to_rows, None, to_columns.transpose(0, 1), None


def _counts(lengths: Tensor, size: int | None) -> list[int]:
    return [size] * len(lengths) if size is not None else lengths.tolist()


def _means(tokens: Tensor, lengths: Tensor) -> Tensor:
    """Means [B, C] of consecutive rows of [R, C]; 0 for a length of 0."""
    starts = F.pad(lengths.cumsum(dim=0), (1, -1))
    return F.embedding_bag(torch.arange(len(tokens), device=tokens.device), tokens, starts, mode="mean")


def _blocks(counts: list[int], columns: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """Consecutive pairs, and their rows: as many as give a tile of similarities."""
    most = max(1, (CPU_TILE if device.type == "cpu" else DEVICE_TILE) // max(1, columns))
    first, start, stop = 0, 0, 0
    for number, count in enumerate(counts):
        if stop > start and stop + count - start > most:
            yield slice(first, number), slice(start, stop)
            first, start = number, stop
        stop += count
    yield slice(first, len(counts)), slice(start, stop)
