"""--micro-batch cuts the batch and changes nothing else; it goes with --accum-freq, which makes steps larger."""

import pytest

from diptych.errors import ConfigError

from .runs import assert_identical, losses, run

STEPS = ("--max-steps", "3", "--force-patch-dropout", "0.5")


def test_pieces_of_a_batch_are_the_same_step_as_so_many_small_batches(pairs, tmp_path):
    run(pairs, tmp_path / "cut", *STEPS, "--batch-size", "8", "--micro-batch", "2")
    run(pairs, tmp_path / "small", *STEPS, "--batch-size", "2", "--accum-freq", "4")
    assert_identical(tmp_path / "cut", tmp_path / "small")
    run(pairs, tmp_path / "whole", *STEPS, "--batch-size", "8")
    assert losses(tmp_path / "cut") == [
        (step, pytest.approx(loss, abs=1e-5)) for step, loss in losses(tmp_path / "whole")
    ]


def test_it_goes_with_larger_steps(pairs, tmp_path):
    run(pairs, tmp_path / "cut", *STEPS, "--batch-size", "4", "--micro-batch", "2", "--accum-freq", "2")
    run(pairs, tmp_path / "small", *STEPS, "--batch-size", "2", "--accum-freq", "4")
    assert_identical(tmp_path / "cut", tmp_path / "small")


def test_a_size_that_does_not_divide_is_refused(pairs, tmp_path):
    with pytest.raises(
        ConfigError, match="--micro-batch 3: --batch-size 8 is no multiple of it; expected a divisor of 8"
    ):
        run(pairs, tmp_path / "a", *STEPS, "--batch-size", "8", "--micro-batch", "3")
    assert not (tmp_path / "a").exists()
