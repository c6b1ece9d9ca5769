"""The order's definition, written a second time in plain integers: a changed order would break every resumed run.

splitmix64 is Steele, Lea and Flood's (2014); its first outputs from the state 0 are published with the reference code.
"""

import numpy as np
import pytest

from diptych.data._order import Mixture, draw, mixed, permute
from diptych.errors import ConfigError

BITS = (1 << 64) - 1


def splitmix64(state):
    state = (state + 0x9E3779B97F4A7C15) & BITS
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & BITS
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & BITS
    return state ^ (state >> 31)


def drawn(*numbers):
    state = 0
    for number in numbers:
        state = splitmix64(state ^ (number & BITS))
    return state >> 1


def record_at(position, count, seed, epoch):
    """Six Feistel rounds over the smallest power of four that holds ``count``, repeated until the result is below it."""
    half = 1
    while 4**half < count:
        half += 1
    while True:
        left, right = position >> half, position % 2**half
        for number in range(6):
            left, right = right, left ^ (splitmix64(right ^ drawn(seed, epoch, number)) % 2**half)
        position = (left << half) | right
        if position < count:
            return position


def test_the_mixing_is_splitmix64():
    golden = 0x9E3779B97F4A7C15
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert mixed(np.array([0, golden, 2 * golden & BITS], dtype=np.uint64)).tolist() == published
    assert [splitmix64(state) for state in (0, golden, 2 * golden & BITS)] == published


@pytest.mark.parametrize("numbers", [(0,), (1, 2, 3), (-1,), (2**64 + 5, 7), (3, 0, -1)])
def test_a_draw_is_the_chain_of_mixings(numbers):
    assert draw(*numbers) == drawn(*numbers)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3)])
def test_the_permutation_is_six_feistel_rounds_with_cycle_walking(count, seed, epoch):
    positions = np.arange(min(count, 70))
    expected = [record_at(int(position), count, seed, epoch) for position in positions]
    result = permute(positions, count, seed, epoch)
    assert result.tolist() == expected
    assert result.dtype == np.int64


def test_the_permutation_takes_any_shape_and_leaves_its_argument():
    positions = np.arange(12).reshape(3, 4)
    assert permute(positions, 12, 1, 2).tolist() == permute(np.arange(12), 12, 1, 2).reshape(3, 4).tolist()
    assert positions.tolist() == np.arange(12).reshape(3, 4).tolist()


def mixture_record(position, sizes, factors, seed, epoch):
    first = splitmix64(position ^ drawn(seed, epoch, -1))
    shares = [size * factor for size, factor in zip(sizes, factors, strict=True)]
    point, source = (first >> 11) / 2**53 * sum(shares), 0
    while point >= shares[source]:
        point -= shares[source]
        source += 1
    return sum(sizes[:source]) + splitmix64(first) % sizes[source]


@pytest.mark.parametrize(
    ("sizes", "factors"), [([5], []), ([10, 30], []), ([10, 30, 7], [1.0, 0.5, 4.0]), ([4, 3, 5], [0.0, 1.0, 2.0])]
)
def test_a_mixture_draws_a_source_then_a_record(sizes, factors):
    mixture = Mixture(sizes, factors)
    expected = [mixture_record(position, sizes, factors or [1.0] * len(sizes), 3, 2) for position in range(300)]
    result = mixture.records(np.arange(300), 3, 2)
    assert result.tolist() == expected
    assert result.dtype == np.int64
    assert mixture.records(np.arange(300).reshape(20, 15), 3, 2).shape == (20, 15)


def test_a_mixture_has_as_many_positions_as_records_unless_given():
    assert Mixture([10, 30]).count == 40
    assert Mixture([10, 30], [2.0, 1.0]).count == 40
    assert Mixture([10, 30], [], 7).count == 7


@pytest.mark.parametrize("factors", [[0.0, 0.0], [-1.0, 1.0], [float("inf"), 1.0], [float("nan"), 1.0]])
def test_factors_must_be_finite_and_not_all_zero(factors):
    with pytest.raises(ConfigError, match="expected finite numbers of at least 0, one of them above it"):
        Mixture([1, 2], factors)


def test_there_is_one_factor_for_each_source():
    with pytest.raises(ConfigError, match="1 factors for 2 sources; give one for each"):
        Mixture([1, 2], [1.0])
