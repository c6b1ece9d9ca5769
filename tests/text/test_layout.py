"""Plans of texts as plain numbers: budgets, lengths to pad to, and what cannot be planned."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import ConfigError, DataError
from diptych.text import (
    TextLayout,
    choose_buckets,
    default_buckets,
    parse_buckets,
    plan_buckets,
    plan_groups,
    plan_packed,
)
from diptych.text._layout import MOST_BUCKETS, UNIT, token_budget

CONTEXT = 77
lengths_of_texts = st.lists(st.integers(1, CONTEXT), min_size=1, max_size=60).map(torch.tensor)


@settings(max_examples=100, deadline=None)
@given(lengths_of_texts)
def test_packed_texts_stand_in_the_batchs_order_and_fill_a_budget(lengths):
    plan = plan_packed(lengths, CONTEXT, CONTEXT)
    assert len(plan.gather) == len(plan.positions) == plan.begins[-1] == plan.ends[-1] + 1
    assert len(plan.gather) % UNIT == 0
    assert plan.begins.dtype == plan.singles.dtype == torch.int32
    sizes = plan.begins.diff()
    assert torch.equal(sizes[: len(lengths)].long(), lengths)
    assert int(sizes[len(lengths) :].min()) >= 1  # no kernel meets an empty sequence
    assert int(sizes.max()) <= plan.longest == CONTEXT  # the same for every batch
    ids = torch.arange(len(lengths) * CONTEXT).view(len(lengths), CONTEXT)
    packed = ids.flatten()[plan.gather]
    real = torch.cat([row[:length] for row, length in zip(ids, lengths, strict=True)])
    assert torch.equal(packed[: len(real)], real)
    assert torch.equal(packed[plan.ends[: plan.texts]], ids[torch.arange(len(lengths)), lengths - 1])
    assert torch.equal(plan.positions, torch.cat([torch.arange(int(size)) for size in sizes]))


@settings(max_examples=60, deadline=None)
@given(lengths_of_texts)
def test_groups_hold_the_real_tokens_alone(lengths):
    plan = plan_groups(lengths, CONTEXT)
    assert len(plan.gather) == int(lengths.sum()) == sum(number * size for number, size in plan.runs)
    ends = plan.gather[plan.ends][plan.inverse]
    assert torch.equal(ends, torch.arange(len(lengths)) * CONTEXT + lengths - 1)
    assert torch.equal(ends, plan_buckets(lengths, CONTEXT).ends)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 500_000), st.integers(2, 300))
def test_a_budget_wastes_little(tokens, longest):
    budget, sequences = token_budget(tokens, longest)
    filling = budget - tokens
    assert budget % UNIT == 0
    assert sequences <= filling <= sequences * longest
    assert filling < max(3 * UNIT, 0.14 * tokens)


def test_batches_of_one_size_have_few_budgets():
    draw = random.Random(3)
    for batch in (64, 1024, 4096):
        budgets = {token_budget(sum(draw.choices(range(7, 25), k=batch)), CONTEXT)[0] for _ in range(50)}
        assert len(budgets) <= 4, (batch, budgets)


def test_buckets_suit_the_lengths_and_the_size_of_a_batch():
    lengths = [8] * 500 + [12] * 400 + [30] * 10
    single, many = choose_buckets(lengths, 1, CONTEXT), choose_buckets(lengths, 64, CONTEXT)
    assert single[:2] == (8, 16)
    assert many[0] > 8  # hardly a batch of 64 has no caption of 12
    assert 32 in many
    for sizes in (single, many):
        assert len(sizes) <= MOST_BUCKETS
        assert sizes[-1] == CONTEXT


def test_no_other_choice_of_lengths_costs_less():
    draw = random.Random(5)
    lengths = [min(CONTEXT, int(draw.lognormvariate(2.6, 0.4)) + 2) for _ in range(300)]
    batches = [max(draw.choices(lengths, k=16)) for _ in range(4000)]

    def cost(sizes):
        return sum(next(size for size in sizes if size >= longest) for longest in batches)

    chosen = choose_buckets(lengths, 16, CONTEXT)
    others = [
        (*some, CONTEXT) for count in range(MOST_BUCKETS) for some in itertools.combinations(range(8, 77, 8), count)
    ]
    assert cost(chosen) <= 1.05 * min(map(cost, others))  # 1 in 300 texts is taken to be longer than all
    assert cost(chosen) < 0.8 * cost((CONTEXT,))


def test_buckets_of_nothing_are_the_usual_ones():
    assert choose_buckets([], 64, CONTEXT) == default_buckets(CONTEXT) == (16, 32, 48, 77)
    assert default_buckets(32) == (16, 32)
    assert default_buckets(12) == (12,)


@pytest.mark.parametrize("text", ["16,32", "32,16,77", "0,77", "1,2,3,4,77", "77,77", "a,77", ""])
def test_buckets_that_cannot_be_are_refused(text):
    with pytest.raises(ConfigError, match="--text-buckets"):
        parse_buckets(text, CONTEXT)
    assert parse_buckets("16,77", CONTEXT) == (16, 77)
    assert parse_buckets("77", CONTEXT) == (77,)


def test_a_layout_pads_to_its_buckets_and_checks_ids():
    layout = TextLayout("buckets", CONTEXT, (16, 40, 77), vocabulary=100)
    assert [layout.padded(longest) for longest in (1, 16, 17, 77)] == [16, 16, 40, 77]
    assert TextLayout("groups", CONTEXT).padded(9) == 9
    with pytest.raises(ConfigError, match="a text of 78 tokens"):
        layout.padded(78)
    layout.check_ids(np.array([[0, 99]]))
    for wrong in (-1, 100):
        with pytest.raises(DataError, match=r"a vocabulary of 100: use its own tokenizer"):
            layout.check_ids(np.array([[5, wrong]]))


@pytest.mark.parametrize("plan", [plan_groups, plan_buckets, lambda lengths, padded: plan_packed(lengths, padded, 77)])
@pytest.mark.parametrize("lengths", [torch.tensor([0, 3]), torch.tensor([9]), torch.tensor([[3]]), torch.tensor([3.0])])
def test_lengths_that_cannot_be_are_refused(plan, lengths):
    with pytest.raises(ConfigError, match="expected int64 \\[captions\\], each 1 to 8"):
        plan(lengths, 8)
