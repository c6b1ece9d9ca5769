"""The queue is first in, first out across its end, its neighbors are those of a plain search, and its state is all there is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.objectives import _queue
from diptych.objectives._queue import FeatureQueue

WIDTH = 4


def rows(count, start=0):
    """Rows that can be recognized by their numbers; the queue stores what it is given."""
    return torch.arange(start, start + count, dtype=torch.float32)[:, None].expand(count, WIDTH)


def numbers(queue):
    return queue.entries[:, 0].tolist()


def test_it_begins_as_unit_directions_that_torchs_seed_decides():
    torch.manual_seed(5)
    one = FeatureQueue(50, WIDTH)
    torch.manual_seed(5)
    other = FeatureQueue(50, WIDTH)
    assert torch.equal(one.entries, other.entries) and one.entries.dtype == torch.float32
    assert torch.allclose(one.entries.norm(dim=1), torch.ones(50), atol=1e-6)
    assert one.position.tolist() == [0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 9), max_size=8))
def test_any_pushes_are_first_in_first_out(size, pushes):
    queue = FeatureQueue(size, WIDTH)
    expected, position, pushed = numbers(queue), 0, 0
    for count in pushes:
        count = min(count, size)
        queue.push(rows(count, pushed))
        for number in range(pushed, pushed + count):
            expected[position] = number
            position = (position + 1) % size
        pushed += count
    assert numbers(queue) == expected
    assert queue.position.tolist() == [position]


def test_a_push_past_the_end_keeps_all_and_compat_loses_the_rest():
    queue, published = FeatureQueue(5, WIDTH), FeatureQueue(5, WIDTH, drops_rest=True)
    for item in (queue, published):
        item.push(rows(3))
        item.push(rows(4, 3))
    assert numbers(queue) == [5, 6, 2, 3, 4] and queue.position.tolist() == [2]
    assert numbers(published) == [0, 1, 2, 3, 4] and published.position.tolist() == [0]
    published.push(rows(5, 20))  # what ends at the end fits
    assert numbers(published) == [20, 21, 22, 23, 24] and published.position.tolist() == [0]


def features(count, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=generator, dtype=dtype), dim=1)


@pytest.mark.parametrize("tile", [1, 1 << 24])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_neighbors_are_those_of_a_plain_search(count, tile, monkeypatch):
    monkeypatch.setattr(_queue, "TILE", tile)
    queue, wanted = FeatureQueue(7, WIDTH), features(5)
    entries = queue.entries.double().numpy()
    order = np.argsort(-(wanted.numpy() @ entries.T), axis=1)[:, :count]
    np.testing.assert_array_equal(queue.nearest(wanted, count).numpy(), entries[order])


def test_neighbors_carry_no_gradient_and_their_querys_type():
    queue = FeatureQueue(7, WIDTH)
    wanted = features(5, dtype=torch.float32).requires_grad_()
    nearest = queue.nearest(wanted)
    assert nearest.shape == (5, 1, WIDTH) and nearest.dtype == torch.float32 and not nearest.requires_grad
    queue.push(wanted)
    assert not queue.entries.requires_grad
    assert torch.equal(queue.nearest(wanted)[:, 0], wanted.detach())


def test_its_state_is_all_there_is():
    queue = FeatureQueue(5, WIDTH)
    queue.push(rows(4))
    queue.push(rows(3, 4))
    copy = FeatureQueue(5, WIDTH)
    copy.load_state_dict(queue.state_dict())
    for item in (queue, copy):
        item.push(rows(4, 7))
    assert torch.equal(queue.entries, copy.entries) and torch.equal(queue.position, copy.position)
