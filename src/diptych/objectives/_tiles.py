"""Cross-entropy over a similarity matrix in tiles of rows, which the processor's caches hold while they are worked on.

For N pairs the plain form holds several N x N matrices (1.3 GB for 8,192 pairs); here it is one while that is small, else a few
tiles, computed again for the gradient, which costs less than it saves in reading and writing. The reference implementation is
torch's ``cross_entropy`` on the whole matrix; both are exact. Not a kernel of its own: matrix products and elementwise
operations of torch, on any device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

TILE = 1 << 21  # elements of one tile: 8 MB in fp32, which the caches of most processors nearly hold

LOWEST = (
    -1e30
)  # a similarity that vanishes in every sum; not infinite, so that differences and products of it stay numbers

STORED = 1 << 26  # similarities that are stored for the gradient (256 MB in fp32); more are computed again


def tiled_cross_entropy(
    rows: Tensor, columns: Tensor, scale: Tensor, offset: int = 0, both: bool = False, *, classes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum over R rows of the cross-entropy of ``scale * rows @ columns.T`` [R, N], own column ``offset + i``.

    ``rows`` [R, D] and ``columns`` [N, D]; ``scale`` [1]. ``both`` adds the columns' cross-entropies, and needs R = N. Also
    returns how many rows have their own column first, int64, of equal ones the lowest. ``classes`` int64 [N]: what
    ``others_of_class`` gives is left out. Differentiable once.
    """
    return _Tiled.apply(rows, columns, scale, offset, both, classes)  # type: ignore[no-any-return]


def others_of_class(classes: Tensor, own: Tensor) -> Tensor:
    """Bool [R, N]: the columns that are of the same class as a row's ``own`` column, int64 [R], and are not that column."""
    columns = torch.arange(len(classes), device=classes.device)
    return (classes[own][:, None] == classes) & (own[:, None] != columns)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        rows, columns, scale, offset, both, classes = inputs
        own = torch.arange(len(rows), device=rows.device) + offset
        by_row, mine, loss = rows.new_empty(len(rows)), rows.new_empty(len(rows)), rows.new_zeros(())
        highest = rows.new_full((len(columns),), -torch.inf)
        summed = rows.new_zeros(len(columns))
        correct = own.new_zeros(())
        stored = rows.new_empty(len(rows), len(columns)) if len(rows) * len(columns) <= STORED else None
        for part, scores, spare in _tiles(rows, columns, scale, stored, (classes, offset)):
            most, winner = scores.max(dim=1, keepdim=True)
            correct += (winner[:, 0] == own[part]).sum()
            torch.sub(scores, most, out=spare).exp_()
            log_sum = spare.sum(dim=1).log_()
            mine[part] = scores.gather(1, own[part, None])[:, 0]
            by_row[part] = most[:, 0] + log_sum
            loss += (most[:, 0] - mine[part] + log_sum).sum()  # differences first: a small loss keeps its digits
            if both:  # the running sum of each column, relative to its highest score so far
                higher = torch.maximum(highest, scores.amax(dim=0))
                torch.sub(scores, higher, out=spare).exp_()
                summed = summed * (highest - higher).exp_() + spare.sum(dim=0)
                highest = higher
        by_column = highest + summed.log() if both else None
        ctx.save_for_backward(rows, columns, scale, by_row, by_column, stored, classes)
        ctx.offset = offset
        if both:
            loss += (highest - mine + summed.log()).sum()
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, scale, by_row, by_column, stored, classes = ctx.saved_tensors
        to_rows, to_columns, to_scale = torch.empty_like(rows), torch.zeros_like(columns), torch.zeros_like(scale)
        share = 1 if by_column is None else 2  # how many cross-entropies each own pair stands in
        for part, scores, weights in _tiles(
            rows, columns, scale, stored, (classes, ctx.offset), ready=stored is not None
        ):
            torch.sub(scores, by_row[part, None], out=weights).exp_()
            if by_column is not None:
                weights.add_((scores - by_column).exp_())
            own = torch.arange(part.start, part.stop, device=rows.device)
            weights[own - part.start, own + ctx.offset] -= share
            torch.mm(weights, columns, out=to_rows[part])
            to_columns.addmm_(weights.T, rows[part])
            to_scale += weights.mul_(scores).sum() / scale
        factor = gradient * scale
        return to_rows.mul_(factor), to_columns.mul_(factor), to_scale * gradient, None, None, None


def _tiles(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    stored: Tensor | None,
    left_out: tuple[Tensor | None, int],
    *,
    ready: bool = False,
) -> Any:
    """(rows of the tile, scaled similarities, a spare matrix of the same shape), the spare one used again and again.

    ``stored`` [R, N] holds all similarities; ``ready`` says that they are in it already. ``left_out``: classes of the columns, or
    None, and the offset of the rows.
    """
    size = max(1, min(len(rows), TILE // max(1, len(columns))))
    spare = rows.new_empty(size, len(columns))
    single = rows.new_empty(size, len(columns)) if stored is None else spare
    classes, offset = left_out
    for begin in range(0, len(rows), size):
        part = slice(begin, min(begin + size, len(rows)))
        count = part.stop - part.start
        scores = single[:count] if stored is None else stored[part]
        if not ready:
            torch.mm(rows[part], columns.T, out=scores).mul_(scale)
            if classes is not None:
                own = torch.arange(part.start, part.stop, device=rows.device) + offset
                scores.masked_fill_(others_of_class(classes, own), LOWEST)
        yield part, scores, spare[:count]
