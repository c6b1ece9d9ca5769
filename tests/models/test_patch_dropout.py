"""Patch dropout: fewer tokens in training, all of them in evaluation, and the kept ones are the tower's own."""

from __future__ import annotations

import pytest
import torch

from diptych.errors import ConfigError
from diptych.models import create_model
from tests.train.test_loop import assert_identical, pairs, run  # noqa: F401 (pairs is a fixture)


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return create_model("tiny-test").image


def test_evaluation_sees_every_patch(tower):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    whole = tower.eval()(images).pooled
    tower.patch_dropout = 0.5
    assert torch.equal(tower(images).pooled, whole)
    assert not torch.equal(tower.train()(images).pooled, whole)


def test_kept_patches_are_distinct_and_of_their_own_picture(tower):
    tower.patch_dropout = 0.75
    x = torch.arange(3 * 17 * 4, dtype=torch.float32).view(3, 17, 4)
    kept = tower._some_patches(x)
    assert kept.shape == (3, 1 + 4, 4) and torch.equal(kept[:, 0], x[:, 0])
    for row, own in zip(kept, x, strict=True):
        places = [int((own == token).all(dim=1).nonzero()) for token in row[1:]]
        assert len(set(places)) == 4 and 0 not in places


def test_every_patch_is_as_likely(tower):
    tower.patch_dropout = 0.5
    x = torch.arange(9.0).view(1, 9, 1).expand(4000, 9, 1)
    counts = torch.bincount(tower._some_patches(x)[:, 1:].flatten().long(), minlength=9)[1:] / 4000
    assert torch.allclose(counts, torch.full((8,), 0.5), atol=0.05)


def test_a_run_with_patch_dropout_resumes_bit_by_bit(pairs, tmp_path):  # noqa: F811
    flags = ("--force-patch-dropout", "0.5", "--max-steps", "6")
    run(pairs, tmp_path / "a", *flags)
    run(pairs, tmp_path / "b", *flags, "--stop-after", "3")
    run(pairs, tmp_path / "b", *flags, "--resume", "latest")
    assert_identical(tmp_path / "a", tmp_path / "b")


def test_what_does_not_go_together_is_one_clear_line(pairs, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match="does not go with --accum-freq"):
        run(pairs, tmp_path / "a", "--force-patch-dropout", "0.5", "--accum-freq", "2")
    with pytest.raises(ConfigError, match="less than 1"):
        run(pairs, tmp_path / "a", "--force-patch-dropout", "1")
