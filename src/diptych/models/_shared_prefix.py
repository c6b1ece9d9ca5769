"""Texts that begin alike, their common prefix computed once: the layout behind fast zero-shot classifiers.

Prompts of one template share the text before the class name. In a causal tower the keys and values of those tokens do not
depend on what follows, so each *prefix* is computed once and the *branches* (the name and what stands after it) attend to it.
Exact: ``PaddedCausal`` on the whole texts is the reference implementation. It finds no prefixes itself; callers know their
templates and pass ``SharedPrefixes``. A form for main memory, by groups of equal length: elsewhere each text is computed whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.errors import ConfigError
from diptych.models._causal import Embedding
from diptych.models._layers import attention, join_heads, rows, scaled_dot_product, split_heads
from diptych.text import check_lengths
from diptych.types import SharedPrefixes


@dataclass(frozen=True)
class PrefixSharing:
    """Prefixes first, sorted by length, then branches, sorted by the lengths of prefix and branch; no padding.

    ``prefixes`` are (number, length) of equal ones; ``branches`` (number, prefix length, branch length); ``owner`` has, for
    each group of branches, the row of its prefix among the prefixes of that length; ``order`` int64 [B] has the texts' indices
    in sorted order; ``gather`` and ``positions`` int64 [T] are the index of each token in the flattened [B * L] batch, and its
    position in its text.
    """

    prefixes: tuple[tuple[int, int], ...]
    branches: tuple[tuple[int, int, int], ...]
    owner: tuple[Tensor, ...]
    order: Tensor
    gather: Tensor
    positions: Tensor
    single_queries: ClassVar[bool] = True

    @classmethod
    def of(cls, tokens: Tensor, lengths: Tensor, shared: SharedPrefixes) -> PrefixSharing:
        """Plan texts int64 [B, L] of ``lengths`` [B], all in main memory.

        Raises ConfigError when the texts of a group do not begin alike, or when a prefix is a whole text.
        """
        width = tokens.shape[1]
        check_lengths(lengths, width)
        ids, counts, group, prefix = tokens, lengths, shared.group, shared.length
        groups, inverse = group.unique(return_inverse=True)
        first = torch.full((len(groups),), len(group)).scatter_reduce(0, inverse, torch.arange(len(group)), "amin")
        _check_prefixes(ids, counts, prefix, first[inverse])
        by_length = torch.argsort(prefix[first], stable=True)
        row = torch.empty_like(by_length).scatter_(0, by_length, torch.arange(len(groups)))
        sizes, repeats = torch.unique_consecutive(prefix[first][by_length], return_counts=True)
        begins = dict(zip(sizes.tolist(), (repeats.cumsum(0) - repeats).tolist(), strict=True))

        rest = counts - prefix
        order = torch.argsort(prefix * (width + 1) + rest, stable=True)
        sorted_sizes = (prefix * (width + 1) + rest)[order]
        pairs, members = torch.unique_consecutive(sorted_sizes, return_counts=True)
        parts = order.split(members.tolist())
        branches = tuple((len(part), *divmod(int(pair), width + 1)) for part, pair in zip(parts, pairs, strict=True))
        owner = tuple(row[inverse[part]] - begins[int(prefix[part[0]])] for part in parts)
        owners = first[by_length]
        text_and_position = torch.cat(
            [
                _token_indices(owners, torch.zeros_like(owners), prefix[owners]),
                _token_indices(order, prefix[order], rest[order]),
            ]
        )
        return cls(
            tuple(zip(repeats.tolist(), sizes.tolist(), strict=True)),
            branches,
            owner,
            order,
            text_and_position[:, 0] * width + text_and_position[:, 1],
            text_and_position[:, 1],
        )

    def embedded(self, ids: Tensor, embedding: Embedding, positions: Tensor) -> Tensor:
        """[T, D], T the tokens of prefixes and branches."""
        # Not by indexing the parameter: the backward pass of that adds repeated positions in no fixed order.
        return embedding(ids.flatten().index_select(0, self.gather)) + F.embedding(self.positions, positions)

    @cached_property
    def _widths(self) -> list[int]:
        """Tokens of each group of prefixes, then of each group of branches."""
        return [number * size for number, size in self.prefixes] + [number * size for number, _, size in self.branches]

    @cached_property
    def _ends(self) -> Tensor:
        start, ends = sum(number * size for number, size in self.prefixes), []
        for number, _, size in self.branches:
            ends.append(torch.arange(start + size - 1, start + number * size, size))
            start += number * size
        return torch.cat(ends)

    def _grouped(self, items: Tensor) -> tuple[dict[int, Tensor], list[Tensor]]:
        """[T, D] -> prefixes by their length [m, P, D], and the groups of branches [n, S, D]."""
        parts = items.split(self._widths)
        prefixes = {
            size: part.unflatten(0, (number, size)) for part, (number, size) in zip(parts, self.prefixes, strict=False)
        }
        rest = parts[len(self.prefixes) :]
        return prefixes, [
            part.unflatten(0, (number, size)) for part, (number, _, size) in zip(rest, self.branches, strict=True)
        ]

    def _whole(self, items: Tensor) -> list[Tensor]:
        """The whole texts of each group of branches, prefix and branch, [n, P + S, D]."""
        prefixes, branches = self._grouped(items)
        return [
            torch.cat([rows(prefixes[size], owner), part], dim=1) if size else part
            for part, (_, size, _), owner in zip(branches, self.branches, self.owner, strict=True)
        ]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """[T, D] each: prefixes causally over themselves, branches over their prefix and causally over themselves."""
        (queries, branch_queries), (keys, _), (values, _) = (self._grouped(item) for item in (query, key, value))
        mixed = [
            attention(queries[size], keys[size], values[size], heads, causal=True).flatten(0, 1) for size in queries
        ]
        for branch, whole_keys, whole_values in zip(branch_queries, self._whole(key), self._whole(value), strict=True):
            mixed.append(_branch_attention(branch, whole_keys, whole_values, heads).flatten(0, 1))
        return torch.cat(mixed)

    def attend_pooled(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """``query`` [B, D] of the end tokens, in sorted order; each attends to its whole text."""
        split = query.split([number for number, _, _ in self.branches])
        groups = zip(split, self._whole(key), self._whole(value), strict=True)
        return torch.cat([attention(queries[:, None], keys, values, heads)[:, 0] for queries, keys, values in groups])

    def pooled(self, tokens: Tensor) -> Tensor:
        """The end tokens [B, D], in sorted order; ``unsorted`` restores the batch's."""
        return tokens[self._ends]

    def unsorted(self, pooled: Tensor) -> Tensor:
        """[B, ...] from sorted order to the texts' own."""
        return pooled[torch.argsort(self.order)]


def _token_indices(texts: Tensor, begin: Tensor, count: Tensor) -> Tensor:
    """(text, position) of ``count`` tokens of each text from position ``begin`` on, [sum of count, 2]."""
    text = torch.repeat_interleave(texts, count)
    start = torch.repeat_interleave(begin - (count.cumsum(0) - count), count)
    return torch.stack([text, start + torch.arange(len(text))], dim=1)


def _check_prefixes(ids: Tensor, lengths: Tensor, prefix: Tensor, first: Tensor) -> None:
    if not (len(ids) == len(lengths) == len(prefix) == len(first)):
        raise ConfigError(
            f"{len(ids)} texts, {len(lengths)} lengths and {len(prefix)} prefix lengths were given; expected as many of each."
        )
    inside = torch.arange(ids.shape[1]) < prefix[:, None]
    whole, uneven = bool((prefix >= lengths).any()), bool((prefix != prefix[first]).any())
    if whole or uneven or bool((prefix < 0).any()) or bool((inside & (ids != ids[first])).any()):
        raise ConfigError("texts of one group must begin with the same ids, and each must go on after its prefix.")


def _branch_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of the last S of P + S tokens: [n, S, D] over [n, P + S, D], each over what stands before it and itself."""
    size, whole = query.shape[1], key.shape[1]
    mask = torch.ones(size, whole, dtype=torch.bool, device=query.device).tril(whole - size)
    queries, keys, values = (split_heads(item, heads) for item in (query, key, value))
    return join_heads(scaled_dot_product(queries, keys, values, mask))
