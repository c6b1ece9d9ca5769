"""Patch dropout: fewer tokens in training, all of them in evaluation, and which remain depends on the pairs' seeds alone."""

from __future__ import annotations

import pytest
import torch

from diptych.errors import ConfigError
from diptych.models import create_model
from tests.train.conftest import pairs  # noqa: F401 (a fixture)
from tests.train.runs import assert_identical, run


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return create_model("tiny-test").image


def pixels(count=2):
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_evaluation_sees_every_patch(tower):
    images = pixels()
    whole = tower.eval()(images).pooled
    tower.patch_dropout = 0.5
    assert torch.equal(tower(images).pooled, whole)
    assert not torch.equal(tower.train()(images).pooled, whole)


def test_remaining_patches_are_distinct_and_of_their_own_image(tower):
    tower.patch_dropout = 0.75
    x = torch.arange(3 * 17 * 4, dtype=torch.float32).view(3, 17, 4)
    remaining = tower._drop_patches(x, None)
    assert remaining.shape == (3, 1 + 4, 4) and torch.equal(remaining[:, 0], x[:, 0])
    for row, own in zip(remaining, x, strict=True):
        indices = [int((own == token).all(dim=1).nonzero()) for token in row[1:]]
        assert len(set(indices)) == 4 and 0 not in indices


@pytest.mark.parametrize("seeds", [None, torch.arange(4000)], ids=["torch's generator", "seeds"])
def test_every_patch_is_as_likely(tower, seeds):
    tower.patch_dropout = 0.5
    x = torch.arange(9.0).view(1, 9, 1).expand(4000, 9, 1)
    counts = torch.bincount(tower._drop_patches(x, seeds)[:, 1:].flatten().long(), minlength=9)[1:] / 4000
    assert torch.allclose(counts, torch.full((8,), 0.5), atol=0.05)


def chosen(tower, x, seeds):
    """The indices of the patches that remain: ``x`` carries each patch's own index."""
    return tower._drop_patches(x, seeds)[:, 1:, 0].long()


@pytest.mark.parametrize("cuts", [[12], [6, 6], [1] * 12, [5, 4, 3]], ids=str)
def test_any_split_of_the_batch_keeps_the_same_patches(tower, cuts):
    tower.patch_dropout = 0.5
    x, seeds = torch.arange(50.0).view(1, 50, 1).expand(12, 50, 1), torch.arange(12) * 104729
    whole = chosen(tower, x, seeds)
    parts = [chosen(tower, *pair) for pair in zip(x.split(cuts), seeds.split(cuts), strict=True)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(chosen(tower, x, seeds), whole)  # a second pass
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(chosen(tower, x[order], seeds[order]), whole[order])
    assert not torch.equal(chosen(tower, x, seeds + 1), whole)


def test_micro_batches_give_the_gradients_of_the_whole_batch(tower):
    tower.double().train().patch_dropout = 0.5
    images, seeds = pixels(6), torch.tensor([3, 1, 4, 1 << 62, 5, 9])
    gradients = []
    for size in (6, 2):
        tower.zero_grad()
        for part, own in zip(images.split(size), seeds.split(size), strict=True):
            tower(part, seeds=own).pooled.square().sum().backward()
        gradients.append([item.grad.clone() for item in tower.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.allclose(first, second, rtol=1e-10, atol=1e-12)


def test_tokens_are_the_patches_that_remain(tower):
    tower.train().patch_dropout = 0.5
    images, seeds = pixels(3), torch.tensor([7, 8, 9])
    encoded = tower(images, return_tokens=True, seeds=seeds)
    assert encoded.tokens.shape == (3, 2, 32) and encoded.mask.shape == (3, 2)
    assert torch.allclose(encoded.pooled, tower(images, seeds=seeds).pooled, atol=1e-6)


def test_a_seed_is_needed_for_each_image(tower):
    tower.train().patch_dropout = 0.5
    with pytest.raises(ConfigError, match="one for each of 2 samples"):
        tower(pixels(2), seeds=torch.arange(3))


def test_a_run_with_patch_dropout_resumes_bit_by_bit(pairs, tmp_path):  # noqa: F811
    flags = ("--force-patch-dropout", "0.5", "--max-steps", "6")
    run(pairs, tmp_path / "a", *flags)
    run(pairs, tmp_path / "b", *flags, "--stop-after", "3")
    run(pairs, tmp_path / "b", *flags, "--resume", "latest")
    assert_identical(tmp_path / "a", tmp_path / "b")


def test_a_share_of_all_patches_is_one_clear_line(pairs, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match="less than 1"):
        run(pairs, tmp_path / "a", "--force-patch-dropout", "1")
