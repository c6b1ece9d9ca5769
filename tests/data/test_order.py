"""The order is a bijection for every size, different every epoch, and looks shuffled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data._order import draw, mixed, permute


@settings(max_examples=200)
@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 1000))
def test_every_place_gets_a_record_of_its_own(count, seed, epoch):
    assert sorted(permute(np.arange(count), count, seed, epoch).tolist()) == list(range(count))


@given(st.integers(2, 10**12), st.integers(0, 2**32), st.data())
def test_a_part_of_the_order_equals_that_part_of_the_whole(count, seed, data):
    positions = np.array(data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20)))
    together = permute(positions, count, seed, 1)
    assert together.tolist() == [int(permute(np.array([position]), count, seed, 1)[0]) for position in positions]
    assert together.min() >= 0
    assert together.max() < count


def test_seed_and_epoch_change_the_order():
    orders = [tuple(permute(np.arange(100), 100, seed, epoch).tolist()) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("count", [1000, 4096, 6000])
def test_it_looks_shuffled(count):
    order = permute(np.arange(count), count, 0, 0)
    # For a random permutation the correlation of position and record is about N(0, 1/n), neighbors differ by n/3 on average,
    # and about one record stays at its position.
    assert abs(np.corrcoef(np.arange(count), order)[0, 1]) < 5 / np.sqrt(count)
    assert abs(np.abs(np.diff(order)).mean() / (count / 3) - 1) < 0.08
    assert (order == np.arange(count)).sum() < 8


def test_blocks_are_evenly_mixed():
    # Each tenth of an epoch should hold about a tenth of each tenth of the records.
    count = 10_000
    order = permute(np.arange(count), count, 5, 2)
    table = np.histogram2d(np.arange(count), order, bins=10)[0]
    assert table.min() > 50
    assert table.max() < 150


def test_drawn_numbers_are_63_bits_and_depend_on_each_part():
    drawn = {draw(seed, epoch, position) for seed in range(5) for epoch in range(5) for position in range(50)}
    assert len(drawn) == 1250
    assert max(drawn) < 2**63


def test_plain_integers_draw_what_the_arrays_do():
    for numbers in ((0,), (1, 2, 3), (2**63, -1, 17), (-5, 2**70)):
        state = np.zeros(1, dtype=np.uint64)
        for number in numbers:
            state = mixed(state ^ np.uint64(number & (1 << 64) - 1))
        assert draw(*numbers) == int(state[0]) >> 1
