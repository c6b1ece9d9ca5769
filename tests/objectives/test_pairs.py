"""What ``compare`` sees of a step is the same for a whole batch and for its micro-batches, field by field."""

import pytest
import torch

from diptych.errors import ConfigError
from diptych.objectives import differentiable, pairs_of
from diptych.objectives._parts import view_seeds
from diptych.types import Pairs

from .worlds import make_batch, pieces_of


@pytest.mark.parametrize("labels", [None, torch.tensor([3, 1, 4, 1, 5, 9])])
@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_micro_batches_give_the_pairs_of_the_whole_batch(parts, labels):
    rows = torch.arange(6)
    batch = make_batch(6)._replace(keys=tuple("uvwxyz"), indices=rows + 10, seeds=rows + 20, groups=rows // 2, epoch=4)
    chunks = [None] * parts if labels is None else labels.chunk(parts)
    pairs = pairs_of(
        [piece._replace(labels=chunk) for piece, chunk in zip(pieces_of(batch, parts), chunks, strict=True)]
    )
    assert isinstance(pairs, Pairs)
    assert pairs.keys == tuple("uvwxyz")
    assert pairs.indices.tolist() == [10, 11, 12, 13, 14, 15]
    assert pairs.seeds.tolist() == [20, 21, 22, 23, 24, 25]
    assert pairs.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert (None if pairs.labels is None else pairs.labels.tolist()) == (None if labels is None else labels.tolist())
    assert pairs.epoch == 4


def test_micro_batches_with_and_without_labels_are_an_error():
    batch = make_batch(2)
    with pytest.raises(ConfigError, match="some micro-batches of a step have labels and others have none"):
        pairs_of([batch._replace(labels=torch.tensor([1, 2])), batch])


def test_views_of_a_pair_draw_from_different_seeds():
    batch = make_batch(5, seed=3)
    seeds = [view_seeds(batch, view) for view in range(4)]
    assert torch.equal(seeds[0], batch.seeds)
    assert len({int(seed) for view in seeds for seed in view}) == 20


@pytest.mark.parametrize(
    ("item", "expected"),
    [(None, False), (torch.zeros(2), True), (torch.zeros(2).bool(), False), (torch.arange(2), False)],
)
def test_only_floating_point_features_carry_gradients(item, expected):
    assert differentiable(item) is expected
