"""How the tokens of a batch are laid out, and what each may attend to.

``FullAttention``   images: [B, N, D], every token attends to every token, the class token (index 0) is pooled.
``LastTokenPool``   SigLIP's texts: [B, L, D], every token attends to every token, the last is pooled.
``PaddedCausal``    texts: [B, L, D], causal, the end token is pooled; padding is computed and ignored. The reference
                    implementation of the two that follow.
``PackedCausal``    texts: [T, D], T the number of real tokens. Captions of equal length stand together, so that norms and
                    linears run on exactly the real tokens and attention is one causal call per length.
(``_shared_prefix`` has the fifth.)

``PackedCausal`` equals ``PaddedCausal`` to rounding: ids after the end token cannot influence a causal tower (tests hold this).
No operation here adds gradients of repeated indices in an undefined order: indexing is by distinct indices only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diptych.errors import ConfigError
from diptych.models._layers import attention, join_heads, scaled_dot_product, split_heads


class FullAttention:
    """Every token attends to every token; the first is pooled."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """[B, N, D] each."""
        return attention(query, key, value, heads)

    def attend_pooled(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """``query`` [B, D], keys and values [B, N, D] -> [B, D]."""
        return attention(query[:, None], key, value, heads)[:, 0]

    def pooled(self, tokens: Tensor) -> Tensor:
        """The class token."""
        return tokens[:, 0]


class LastTokenPool(FullAttention):
    """Every token attends to every token; the last is pooled."""

    def pooled(self, tokens: Tensor) -> Tensor:
        """The last token."""
        return tokens[:, -1]


@dataclass(frozen=True)
class PaddedCausal:
    """Causal sequences padded to one length; ``lengths`` int64 [B] counts real tokens, the last of which is pooled."""

    lengths: Tensor

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """[B, L, D] each."""
        return attention(query, key, value, heads, causal=True)

    def attend_pooled(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """``query`` [B, D] of the end tokens, each attending to everything up to itself."""
        # The causal mask's row of each end token.
        mask = torch.arange(key.shape[1], device=key.device) < self.lengths[:, None]
        queries, keys, values = (split_heads(item, heads) for item in (query[:, None], key, value))
        return join_heads(scaled_dot_product(queries, keys, values, mask[:, None, None]))[:, 0]

    def pooled(self, tokens: Tensor) -> Tensor:
        """The end token of each sequence."""
        return tokens[torch.arange(tokens.shape[0], device=tokens.device), self.lengths - 1]


@dataclass(frozen=True)
class PackedCausal:
    """Real tokens only, captions sorted by length.

    ``order`` int64 [B] has the captions' indices in sorted order; ``runs`` are (number of captions, their length), in that
    order; ``gather`` int64 [T] is the index of each packed token in the flattened [B * L] batch; ``positions`` int64 [T] its
    position in its caption.
    """

    order: Tensor
    runs: tuple[tuple[int, int], ...]
    gather: Tensor
    positions: Tensor

    @classmethod
    def of(cls, lengths: Tensor, padded_length: int) -> PackedCausal:
        """Plan a batch of captions with ``lengths`` int64 [B], stored padded to ``padded_length``."""
        # Planning is a few small integer operations, which belong on the CPU whatever the towers run on.
        counts = lengths_on_cpu(lengths, padded_length)
        order = torch.argsort(counts, stable=True)
        sizes, repeats = torch.unique_consecutive(counts[order], return_counts=True)
        runs = tuple((int(number), int(size)) for size, number in zip(sizes, repeats, strict=True))
        positions = torch.cat([torch.arange(size).repeat(number) for number, size in runs])
        gather = torch.repeat_interleave(order * padded_length, counts[order]) + positions
        device = lengths.device
        return cls(order.to(device), runs, gather.to(device), positions.to(device))

    @cached_property
    def _widths(self) -> list[int]:
        return [number * size for number, size in self.runs]

    @cached_property
    def _ends(self) -> Tensor:
        """The index of each caption's end token among the packed tokens, captions in sorted order."""
        ends, start = [], 0
        for number, size in self.runs:
            ends.append(torch.arange(start + size - 1, start + number * size, size))
            start += number * size
        return torch.cat(ends).to(self.order.device)

    @cached_property
    def _inverse(self) -> Tensor:
        return torch.argsort(self.order)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """[T, D] each; one causal call per group of equal length."""
        groups = zip(*(item.split(self._widths) for item in (query, key, value)), self.runs, strict=True)
        mixed = []
        for queries, keys, values, run in groups:
            parts = (queries.unflatten(0, run), keys.unflatten(0, run), values.unflatten(0, run))
            mixed.append(attention(*parts, heads=heads, causal=True).flatten(0, 1))
        return torch.cat(mixed)

    def attend_pooled(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """``query`` [B, D] of the end tokens, in sorted order; each attends to its whole caption."""
        split = query.split([number for number, _ in self.runs])
        groups = zip(split, key.split(self._widths), value.split(self._widths), self.runs, strict=True)
        return torch.cat(
            [
                attention(queries[:, None], keys.unflatten(0, run), values.unflatten(0, run), heads)[:, 0]
                for queries, keys, values, run in groups
            ]
        )

    def pooled(self, tokens: Tensor) -> Tensor:
        """The end tokens [B, D], in sorted order; ``unsorted`` restores the batch's."""
        return tokens[self._ends]

    def unsorted(self, sorted_rows: Tensor) -> Tensor:
        """[B, ...] from sorted order to the batch's own."""
        return sorted_rows[self._inverse]


def lengths_on_cpu(lengths: Tensor, padded_length: int) -> Tensor:
    """The lengths in main memory. Raises ConfigError unless they are int64 [B] of 1 to ``padded_length``."""
    counts = lengths if lengths.is_meta else lengths.cpu()  # on the meta device there are no values to check
    outside = (counts < 1) | (counts > padded_length)
    if counts.ndim != 1 or counts.dtype != torch.int64 or (not counts.is_meta and bool(outside.any())):
        raise ConfigError(
            f"lengths of shape {list(counts.shape)} and type {counts.dtype} were given; expected int64 [captions], each 1 to"
            f" {padded_length}."
        )
    return counts
