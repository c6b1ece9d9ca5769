"""How the tokens of a batch of texts are laid out for a causal tower, planned on the host: three forms, one function for each.

``groups``    real tokens only, texts of equal length together: one attention call for each length. What suits a CPU.
``varlen``    real tokens only, one text after another, filled up to a budget of tokens: one call of a kernel for sequences of
              unequal length, and few shapes. What suits an accelerator that has such a kernel.
``buckets``   padded to one of a few lengths: one causal call, at most four shapes. What suits any accelerator.

Plain integer arithmetic on lengths: plans are made in loader processes and travel with the batch (``diptych.types``), so that
nothing about the layout is read back from a device. Which form a device takes is its own answer (``Device.text_layout``); what
attends to what is the models'. No tokenizer here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from diptych.errors import ConfigError, DataError
from diptych.types import BucketedTexts, GroupedTexts, PackedTexts, TextForm, TextPlan

FORMS: tuple[TextForm, ...] = get_args(TextForm)

UNIT = 128  # tokens: rows of a tile of matrix products
MOST_FILLING = 16  # a budget has at most about 1/16 of filling, where texts have more than 16 units
MOST_BUCKETS = 4
BUCKET_STEP = 8  # what matrix units like sizes to be multiples of


@dataclass(frozen=True)
class TextLayout:
    """A form with what plans of it need: the model's ``context``, and ``buckets``, the lengths that ids are padded to, ascending.

    ``groups`` has no buckets: ids are padded to the longest of a batch. ``vocabulary``: ids of a batch must be below it, which is
    checked where the plan is made; 0 checks nothing.
    """

    form: TextForm
    context: int
    buckets: tuple[int, ...] = ()
    vocabulary: int = 0

    def padded(self, longest: int) -> int:
        """The length that ids are padded to in a batch whose longest text has ``longest``. Raises ConfigError where none is."""
        if self.form == "groups":
            return longest
        for size in self.buckets:
            if longest <= size:
                return size
        raise ConfigError(f"a text of {longest} tokens was given; the layout's longest is {self.buckets[-1]}.")

    def plan(self, lengths: Tensor, padded: int) -> TextPlan:
        """The plan of texts of ``lengths`` int64 [B], in main memory, whose ids are padded to ``padded``. Raises ConfigError."""
        if self.form == "groups":
            return plan_groups(lengths, padded)
        if self.form == "varlen":
            return plan_packed(lengths, padded, self.context)
        return plan_buckets(lengths, padded)

    def check_ids(self, ids: np.ndarray) -> None:
        """Raise DataError for ids outside of the vocabulary."""
        if self.vocabulary and ids.size and (ids.min() < 0 or ids.max() >= self.vocabulary):
            raise DataError(
                f"token ids from {ids.min()} to {ids.max()} were given; the model has a vocabulary of {self.vocabulary:,}: use"
                " its own tokenizer."
            )


def check_lengths(lengths: Tensor, padded: int) -> None:
    """Raise ConfigError unless lengths are int64 [B], and, of a tensor in main memory, each 1 to ``padded``."""
    wrong = lengths.ndim != 1 or lengths.dtype != torch.int64
    if not wrong and lengths.is_cpu:  # elsewhere it would wait for the device
        wrong = bool(((lengths < 1) | (lengths > padded)).any())
    if wrong:
        raise ConfigError(
            f"lengths of shape {list(lengths.shape)} and type {lengths.dtype} were given; expected int64 [captions], each 1 to"
            f" {padded}."
        )


def plan_groups(lengths: Tensor, padded: int) -> GroupedTexts:
    """Plan texts of ``lengths`` int64 [B], ids padded to ``padded``, by groups of equal length. Raises ConfigError."""
    _check_some(lengths, padded)
    order = torch.argsort(lengths, stable=True)
    sizes, repeats = torch.unique_consecutive(lengths[order], return_counts=True)
    runs = tuple((int(number), int(size)) for size, number in zip(sizes, repeats, strict=True))
    positions = torch.cat([torch.arange(size).repeat(number) for number, size in runs])
    gather = torch.repeat_interleave(order * padded, lengths[order]) + positions
    return GroupedTexts(padded, runs, gather, positions, lengths[order].cumsum(0) - 1, torch.argsort(order))


def plan_packed(lengths: Tensor, padded: int, context: int) -> PackedTexts:
    """Plan texts of ``lengths`` int64 [B], ids padded to ``padded``, one after another. Raises ConfigError.

    ``context`` is the most that any text of the model has, so that it is the same for every batch.
    """
    _check_some(lengths, padded)
    longest = max(2, context)
    total = int(lengths.sum())
    budget, sequences = token_budget(total, longest)
    filling = budget - total
    # As even as can be: each has at least one token, and none more than the longest text may have.
    added = torch.tensor([filling // sequences + (number < filling % sequences) for number in range(sequences)])
    every = torch.cat([lengths, added])
    begins = torch.cat([torch.zeros(1, dtype=torch.int64), every.cumsum(0)])
    positions = torch.arange(budget) - torch.repeat_interleave(begins[:-1], every)
    rows = torch.repeat_interleave(torch.arange(len(lengths)) * padded, lengths)
    gather = torch.cat([rows + positions[:total], torch.zeros(filling, dtype=torch.int64)])
    singles = torch.arange(len(begins), dtype=torch.int32)
    return PackedTexts(
        padded, len(lengths), longest, gather, positions, begins.to(torch.int32), singles, begins[1:] - 1
    )


def plan_buckets(lengths: Tensor, padded: int) -> BucketedTexts:
    """Plan texts of ``lengths`` int64 [B] as they are padded, to ``padded``. Raises ConfigError."""
    check_lengths(lengths, padded)
    return BucketedTexts(padded, bucket_ends(lengths, padded))


def bucket_ends(lengths: Tensor, padded: int) -> Tensor:
    """The index of each end token in the flattened [B * padded] ids, int64 [B], on the device of ``lengths``."""
    return torch.arange(len(lengths), device=lengths.device) * padded + (lengths - 1)


def token_budget(tokens: int, longest: int) -> tuple[int, int]:
    """The tokens that a batch of ``tokens`` is filled up to, a multiple of ``UNIT``, and the number of sequences of filling.

    Batches of one size differ by few budgets: units grow with the batch, to a power of two of at most a sixteenth of it. Each
    sequence of filling has 1 to ``longest`` tokens (at least 2), whatever the batch.
    """
    unit = max(UNIT, 1 << max(0, (tokens // MOST_FILLING).bit_length() - 1))
    sequences = -(-(unit - 1) // (longest - 1))
    return -(-(tokens + sequences) // unit) * unit, sequences


def _check_some(lengths: Tensor, padded: int) -> None:
    check_lengths(lengths, padded)
    if not len(lengths):
        raise ConfigError("no text was given to plan; expected at least 1.")


# --- lengths to pad to ----------------------------------------------------------------------------------------------------------


def parse_buckets(text: str, context: int) -> tuple[int, ...]:
    """``16,32,48,77`` as numbers. Raises ConfigError unless they are at most four, ascending, the last the context's length."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--text-buckets {text}: expected auto, or lengths such as 16,32,48,{context}.") from error
    ascending = all(low < high for low, high in itertools.pairwise((0, *sizes)))
    if not ascending or sizes[-1] != context or len(sizes) > MOST_BUCKETS:
        raise ConfigError(
            f"--text-buckets {text}: expected at most {MOST_BUCKETS} ascending lengths, the last {context}, this model's "
            "context."
        )
    return sizes


def default_buckets(context: int) -> tuple[int, ...]:
    """Lengths for texts of which nothing is known: up to three steps of 16 tokens, and the context."""
    return (*(size for size in (16, 32, 48) if size < context), context)


def choose_buckets(lengths: Sequence[int], batch: int, context: int) -> tuple[int, ...]:
    """At most four lengths that batches of ``batch`` texts cost the fewest tokens with, given ``lengths`` of some texts.

    A batch has the length of its longest text. Of equal costs the fewest lengths are taken; the last is the context. Without
    any text: ``default_buckets``.
    """
    if not lengths:
        return default_buckets(context)
    step = BUCKET_STEP * max(1, context // (32 * BUCKET_STEP))
    candidates = list(range(step, context, step))
    observed = np.sort(np.asarray(lengths))
    # One more text, longer than all, stands for those that were not seen.
    share = np.searchsorted(observed, candidates, side="right") / (len(observed) + 1)
    fits = dict(zip(candidates, share**batch, strict=True))
    best: tuple[int, ...] = (context,)
    lowest = float(context)
    for count in range(1, MOST_BUCKETS):
        for chosen in itertools.combinations(candidates, count):
            cost, before = 0.0, 0.0
            for size in chosen:
                cost, before = cost + size * (fits[size] - before), fits[size]
            cost += context * (1 - before)
            if cost < lowest - 1e-9:
                best, lowest = (*chosen, context), cost
    return best
