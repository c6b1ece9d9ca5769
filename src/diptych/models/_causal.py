"""The forms of CLIP's causal text tower: who attends to whom where padding is not computed, or computed without a mask.

``GroupedCausal``  [T, D], T the number of real tokens. Texts of equal length stand together, so that norms and linears run on
                   exactly the real tokens and attention is one causal call per length.
``VarlenCausal``   [T, D], one text after another, filled up to a budget: attention is one call of a kernel for such sequences.
``BucketCausal``   [B * L, D]: every token of texts padded to L, and attention is one causal call without a mask.
(``_shared_prefix`` has the form of texts that begin alike.)

Each equals ``PaddedCausal`` to rounding: ids after the end token cannot influence a causal tower (tests hold this). The numbers
that they need are plans that were made on the host (``diptych.text``, ``diptych.types``): nothing is read back from the device.
No operation here adds gradients of repeated indices in an undefined order: indexing is by distinct indices only, but of the
filling, which nothing is pooled from and whose gradients are zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.errors import ConfigError
from diptych.models._cpu_attention import in_main_memory
from diptych.models._layers import Plan, attention, scaled_dot_product
from diptych.models._varlen import Kernel, causal_option, kernel_for
from diptych.text import bucket_ends, check_lengths, plan_groups
from diptych.types import BucketedTexts, GroupedTexts, PackedTexts, TextPlan

Embedding = Callable[[Tensor], Tensor]


class CausalPlan(Plan, Protocol):
    """A plan of texts: beside who attends to whom, where ids go and where features come from."""

    def embedded(self, ids: Tensor, embedding: Embedding, positions: Tensor) -> Tensor:
        """Embedded ids int64 [B, L] with the rows of their ``positions`` [context, D] added, in the plan's layout."""

    def unsorted(self, pooled: Tensor) -> Tensor:
        """What the last block gave of the pooled tokens, [B, ...] in the batch's order."""


def gathered(ids: Tensor, plan: GroupedTexts | PackedTexts, embedding: Embedding, positions: Tensor) -> Tensor:
    """Embedded tokens [T, D] of ids [B, L] by the plan's indices."""
    # Not by indexing the parameter: the backward pass of that adds repeated positions in no fixed order.
    return embedding(ids.flatten().index_select(0, plan.gather)) + F.embedding(plan.positions, positions)


@dataclass(frozen=True)
class GroupedCausal:
    """Real tokens only, in groups of texts of equal length."""

    plan: GroupedTexts
    single_queries: ClassVar[bool] = True

    @cached_property
    def _runs(self) -> list[tuple[int, int]]:
        # Pages of memory are locked by making lists of tuples.
        return [(int(number), int(size)) for number, size in self.plan.runs]

    @cached_property
    def _widths(self) -> list[int]:
        return [number * size for number, size in self._runs]

    def embedded(self, ids: Tensor, embedding: Embedding, positions: Tensor) -> Tensor:
        """[T, D]."""
        return gathered(ids, self.plan, embedding, positions)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """[T, D] each; one causal call per group of equal length."""
        groups = zip(*(item.split(self._widths) for item in (query, key, value)), self._runs, strict=True)
        mixed = []
        for queries, keys, values, run in groups:
            parts = (queries.unflatten(0, run), keys.unflatten(0, run), values.unflatten(0, run))
            mixed.append(attention(*parts, heads=heads, causal=True).flatten(0, 1))
        return torch.cat(mixed)

    def attend_pooled(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """``query`` [B, D] of the end tokens, in sorted order; each attends to its whole text."""
        split = query.split([number for number, _ in self._runs])
        groups = zip(split, key.split(self._widths), value.split(self._widths), self._runs, strict=True)
        return torch.cat(
            [
                attention(queries[:, None], keys.unflatten(0, run), values.unflatten(0, run), heads)[:, 0]
                for queries, keys, values, run in groups
            ]
        )

    def pooled(self, tokens: Tensor) -> Tensor:
        """The end tokens [B, D], in sorted order; ``unsorted`` restores the batch's."""
        return tokens[self.plan.ends]

    def unsorted(self, pooled: Tensor) -> Tensor:
        """[B, ...] from sorted order to the batch's own."""
        return pooled[self.plan.inverse]


@dataclass(frozen=True)
class VarlenCausal:
    """Texts one after another, and sequences of filling after them; ``kernel`` None takes that of the tokens' device."""

    plan: PackedTexts
    kernel: Kernel | None = None
    single_queries: ClassVar[bool] = True

    def embedded(self, ids: Tensor, embedding: Embedding, positions: Tensor) -> Tensor:
        """[T, D], filling included."""
        return gathered(ids, self.plan, embedding, positions)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """[T, D] each, in one call."""
        plan = self.plan
        kernel = self.kernel or kernel_for(query)
        parts = [item.unflatten(-1, (heads, -1)) for item in (query, key, value)]
        bounds = (plan.begins, plan.begins, plan.longest, plan.longest)
        return kernel(*parts, *bounds, **causal_option(kernel)).flatten(1)

    def attend_pooled(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """``query`` [B + P, D] of each sequence's last token, which attends to all of the sequence; in one call.

        The filling has queries too: the kernel's backward pass writes gradients of those keys only that a sequence holds.
        """
        plan = self.plan
        kernel = self.kernel or kernel_for(query)
        parts = [item.unflatten(-1, (heads, -1)) for item in (query, key, value)]
        return kernel(*parts, plan.singles, plan.begins, 1, plan.longest).flatten(1)

    def pooled(self, tokens: Tensor) -> Tensor:
        """The last tokens [B + P, D] of texts and filling."""
        return tokens.index_select(0, self.plan.ends)

    def unsorted(self, pooled: Tensor) -> Tensor:
        """[B, ...], without the filling's."""
        return pooled[: self.plan.texts]


@dataclass(frozen=True)
class BucketCausal:
    """Every token of texts that are padded to one length.

    The last block computes all queries too: a query for each end token alone would attend to a length of its own, and so take a
    mask, with which no flash kernel runs. That costs a product of width x width for each token of one block.
    """

    plan: BucketedTexts
    single_queries: ClassVar[bool] = False

    def _split(self, tokens: Tensor, heads: int) -> Tensor:
        """[B * L, heads * d] -> [B, heads, L, d]."""
        return tokens.view(len(self.plan.ends), self.plan.padded, heads, -1).transpose(1, 2)

    def embedded(self, ids: Tensor, embedding: Embedding, positions: Tensor) -> Tensor:
        """[B * L, D]."""
        return (embedding(ids) + positions[: ids.shape[1]]).flatten(0, 1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """[B * L, D] each, in one call."""
        queries, keys, values = (self._split(item, heads) for item in (query, key, value))
        mixed = scaled_dot_product(queries, keys, values, causal=True)
        return mixed.transpose(1, 2).reshape(query.shape)

    def attend_pooled(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Not this plan's form of a last block (``single_queries``)."""
        raise NotImplementedError

    def pooled(self, tokens: Tensor) -> Tensor:
        """The end tokens [B, D], in the batch's order."""
        return tokens.index_select(0, self.plan.ends)

    def unsorted(self, pooled: Tensor) -> Tensor:
        """As they are."""
        return pooled


def causal_plan(plan: TextPlan, ids: Tensor) -> CausalPlan:
    """The form of a plan that was made for ``ids`` [B, L]. Raises ConfigError where it was made for another shape."""
    form: CausalPlan
    if isinstance(plan, GroupedTexts):
        form, texts = GroupedCausal(plan), len(plan.inverse)
    elif isinstance(plan, PackedTexts):
        form, texts = VarlenCausal(plan), plan.texts
    else:
        form, texts = BucketCausal(plan), len(plan.ends)
    if (texts, plan.padded) != tuple(ids.shape):
        raise ConfigError(
            f"a plan of texts [{texts}, {plan.padded}] was given with ids of shape {list(ids.shape)}; expected the plan of these"
            " ids."
        )
    return form


def unplanned(lengths: Tensor, padded: int) -> CausalPlan:
    """The form for texts of ``lengths`` [B], ids padded to ``padded``, of which nobody made a plan.

    In main memory groups. Elsewhere the texts as they are padded, which takes no number from the device; a plan can do less.
    Raises ConfigError for lengths that cannot be, where they are in main memory.
    """
    check_lengths(lengths, padded)
    if in_main_memory(lengths):
        return GroupedCausal(plan_groups(lengths, padded))
    return BucketCausal(BucketedTexts(padded, bucket_ends(lengths, padded)))
