"""Draws from (seed, layer): uniform, independent of each other, and dependent on nothing else."""

import math

import pytest
import torch

from diptych.models import _seeded

MASK = (1 << 64) - 1


def reference(seed: int, layer: int, count: int) -> list[int]:
    """The same numbers in Python's unbounded integers, after the published splitmix64."""

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    key = mix((mix(seed & MASK) + (layer + 1) * 0xBF58476D1CE4E5B9) & MASK)
    return [mix((key + number * 0x9E3779B97F4A7C15) & MASK) >> 1 for number in range(1, count + 1)]


def test_the_finalizer_is_splitmix64s():
    """The first outputs of the published generator for the seed 1234567."""
    counter = 1234567 + torch.arange(1, 4) * _seeded._signed(_seeded.GOLDEN)
    outputs = [int(value) & MASK for value in _seeded._mixed(counter)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed", [0, 1, 12345678901234567, (1 << 63) - 1, -5])
@pytest.mark.parametrize("layer", [0, 1, 77])
def test_integers_equal_those_of_unbounded_arithmetic(seed, layer):
    assert _seeded.integers(torch.tensor([seed]), layer, 9)[0].tolist() == reference(seed, layer, 9)


def test_numbers_are_uniform():
    """Chi-squared over 64 bins of consecutive seeds, of one seed's stream, and of their lowest bits."""
    drawn = _seeded.uniform(torch.arange(2000), 3, 100)
    assert drawn.dtype == torch.float32 and float(drawn.min()) >= 0 and float(drawn.max()) < 1
    fine = _seeded.uniform(torch.arange(2000), 3, 100) * 4096 % 1
    for sample in (drawn, drawn[:, 0], _seeded.uniform(torch.tensor([5]), 0, 50_000), fine):
        counts = torch.histc(sample.flatten(), bins=64, min=0, max=1)
        expected = sample.numel() / 64
        chi_squared = float(((counts - expected) ** 2 / expected).sum())
        # 63 degrees of freedom: mean 63, standard deviation 11.2; five of them on either side.
        assert 63 - 5 * 11.2 < chi_squared < 63 + 5 * 11.2


@pytest.mark.parametrize(
    ("first", "second"),
    [((0, 0), (0, 1)), ((0, 0), (1, 0)), ((0, 1), (1, 0)), ((0, 5), (0, 6)), ((0, 0), (1 << 40, 0))],
    ids=["layers", "seeds", "crossed", "later layers", "high bits"],
)
def test_streams_of_other_seeds_and_layers_are_independent(first, second):
    count, base = 400, torch.arange(0, 500)
    streams = [_seeded.uniform(base + seed, layer, count).double() - 0.5 for seed, layer in (first, second)]
    first_numbers, second_numbers = (stream.flatten() for stream in streams)
    assert not torch.equal(first_numbers, second_numbers)
    for shift in (0, 1):  # the same number, and the previous
        shifted = torch.roll(second_numbers, shift)
        correlation = float(torch.corrcoef(torch.stack([first_numbers, shifted]))[0, 1])
        assert abs(correlation) < 5 / math.sqrt(shifted.numel())


def test_subsets_are_distinct_and_every_index_is_as_likely():
    chosen = _seeded.subset(torch.arange(6000), 1, 12, 3)
    assert all(len(set(row)) == 3 for row in chosen.tolist())
    share = torch.bincount(chosen.flatten(), minlength=12) / 6000
    assert torch.allclose(share, torch.full((12,), 0.25), atol=5 * math.sqrt(0.25 * 0.75 / 6000))


def test_without_seeds_torchs_generator_decides():
    torch.manual_seed(4)
    drawn = _seeded.seeds_of(None, 5, torch.device("cpu"))
    later = _seeded.seeds_of(None, 5, torch.device("cpu"))
    torch.manual_seed(4)
    assert torch.equal(_seeded.seeds_of(None, 5, torch.device("cpu")), drawn)
    assert not torch.equal(drawn, later) and drawn.dtype == torch.int64
