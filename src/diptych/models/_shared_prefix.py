"""Texts that begin alike, their common beginning computed once: the layout behind fast zero-shot classifiers.

Prompts of one template share the words before the class name. In a causal tower the keys and values of those words do not
depend on what follows, so each *stem* is computed once and the *branches* (the name and what stands after it) attend to it.
Exact: ``PackedCausal`` on the whole texts is the plain twin. It finds no stems itself; callers know their templates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from diptych.errors import ConfigError
from diptych.models._layers import attention, join_heads, scaled_dot_product, split_heads


@dataclass(frozen=True)
class SharedPrefix:
    """Stems first, sorted by length, then branches, sorted by the lengths of stem and branch; no padding.

    ``stems`` are (number, length) of equal ones; ``branches`` (number, stem length, branch length); ``owner`` has, for each
    group of branches, the row of its stem among the stems of that length; ``order`` int64 [B] is the text at each place;
    ``gather`` and ``positions`` int64 [T] tell where each token stands in the flattened [B * L] batch, and in its text.
    """

    stems: tuple[tuple[int, int], ...]
    branches: tuple[tuple[int, int, int], ...]
    owner: tuple[Tensor, ...]
    order: Tensor
    gather: Tensor
    positions: Tensor

    @classmethod
    def of(cls, tokens: Tensor, lengths: Tensor, stem: Tensor, stem_length: Tensor) -> SharedPrefix:
        """Plan texts int64 [B, L]: text b begins with the first ``stem_length[b]`` ids of all texts of ``stem[b]``, int64 [B].

        Raises ConfigError when the texts of a stem do not begin alike, or when a stem is a whole text.
        """
        ids, lengths, stem, own = (item.cpu() for item in (tokens, lengths, stem, stem_length))
        names, inverse = stem.unique(return_inverse=True)
        first = torch.full((len(names),), len(stem)).scatter_reduce(0, inverse, torch.arange(len(stem)), "amin")
        _begin_alike(ids, lengths, own, first[inverse])
        by_length = torch.argsort(own[first], stable=True)
        row = torch.empty_like(by_length).scatter_(0, by_length, torch.arange(len(names)))
        sizes, many = torch.unique_consecutive(own[first][by_length], return_counts=True)
        begins = dict(zip(sizes.tolist(), (many.cumsum(0) - many).tolist(), strict=True))

        width = ids.shape[1]
        rest = lengths - own
        order = torch.argsort(own * (width + 1) + rest, stable=True)
        groups, members = torch.unique_consecutive(own[order] * (width + 1) + rest[order], return_counts=True)
        parts = order.split(members.tolist())
        branches = tuple((len(part), *divmod(int(group), width + 1)) for part, group in zip(parts, groups, strict=True))
        owner = tuple(row[inverse[part]] - begins[int(own[part[0]])] for part in parts)
        stems_at = first[by_length]
        at = torch.cat(
            [_places(stems_at, torch.zeros_like(stems_at), own[stems_at]), _places(order, own[order], rest[order])]
        )
        place = tokens.device
        return cls(
            tuple(zip(many.tolist(), sizes.tolist(), strict=True)),
            branches,
            tuple(rows.to(place) for rows in owner),
            order.to(place),
            (at[:, 0] * width + at[:, 1]).to(place),
            at[:, 1].to(place),
        )  # fmt: skip

    @cached_property
    def _widths(self) -> list[int]:
        """Tokens of each group of stems, then of each group of branches."""
        return [many * size for many, size in self.stems] + [many * size for many, _, size in self.branches]

    @cached_property
    def _ends(self) -> Tensor:
        start, ends = sum(many * size for many, size in self.stems), []
        for many, _, size in self.branches:
            ends.append(torch.arange(start + size - 1, start + many * size, size))
            start += many * size
        return torch.cat(ends).to(self.order.device)

    def _grouped(self, items: Tensor) -> tuple[dict[int, Tensor], list[Tensor]]:
        """[T, D] -> stems by their length [m, P, D], and the groups of branches [n, S, D]."""
        parts = items.split(self._widths)
        stems = {size: part.unflatten(0, (many, size)) for part, (many, size) in zip(parts, self.stems, strict=False)}
        rest = parts[len(self.stems) :]
        return stems, [
            part.unflatten(0, (many, size)) for part, (many, _, size) in zip(rest, self.branches, strict=True)
        ]

    def _seen(self, items: Tensor) -> list[Tensor]:
        """What the branches of each group may look at: their stem, then themselves, [n, P + S, D]."""
        stems, branches = self._grouped(items)
        return [
            torch.cat([stems[size][rows], part], dim=1) if size else part
            for part, (_, size, _), rows in zip(branches, self.branches, self.owner, strict=True)
        ]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """[T, D] each: stems causally among themselves, branches over their stem and causally over themselves."""
        (asks, asking), (keys, _), (values, _) = (self._grouped(item) for item in (query, key, value))
        mixed = [attention(asks[size], keys[size], values[size], heads, causal=True).flatten(0, 1) for size in asks]
        for ask, seen, found in zip(asking, self._seen(key), self._seen(value), strict=True):
            mixed.append(_behind_a_stem(ask, seen, found, heads).flatten(0, 1))
        return torch.cat(mixed)

    def attend_pooled(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """``query`` [B, D] of the end tokens, in sorted order; each sees its whole text."""
        queries = query.split([many for many, _, _ in self.branches])
        groups = zip(queries, self._seen(key), self._seen(value), strict=True)
        return torch.cat([attention(ask[:, None], seen, found, heads)[:, 0] for ask, seen, found in groups])

    def pooled(self, tokens: Tensor) -> Tensor:
        """The end tokens [B, D], in sorted order; ``unsorted`` puts them back."""
        return tokens[self._ends]

    def unsorted(self, rows: Tensor) -> Tensor:
        """[B, ...] from sorted order to the texts' own."""
        return rows[torch.argsort(self.order)]


def _places(texts: Tensor, begin: Tensor, count: Tensor) -> Tensor:
    """(text, place) of ``count`` tokens of each text from place ``begin`` on, [sum of count, 2]."""
    text = torch.repeat_interleave(texts, count)
    start = torch.repeat_interleave(begin - (count.cumsum(0) - count), count)
    return torch.stack([text, start + torch.arange(len(text))], dim=1)


def _begin_alike(ids: Tensor, lengths: Tensor, own: Tensor, first: Tensor) -> None:
    inside = torch.arange(ids.shape[1]) < own[:, None]
    if bool((own >= lengths).any()) or bool((own != own[first]).any()) or bool((inside & (ids != ids[first])).any()):
        raise ConfigError("texts of one stem must begin with the same ids, and each must go on after its stem.")


def _behind_a_stem(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of the last S of P + S tokens: [n, S, D] over [n, P + S, D], each seeing what stands before it and itself."""
    size, seen = query.shape[1], key.shape[1]
    mask = torch.ones(size, seen, dtype=torch.bool, device=query.device).tril(seen - size)
    asks, keys, values = (split_heads(item, heads) for item in (query, key, value))
    return join_heads(scaled_dot_product(asks, keys, values, mask))
