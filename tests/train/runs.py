"""A small world to train on, and runs of it: what the tests of training share."""

import torch

from diptych import log, weights
from diptych.train.config import read
from diptych.train.loop import train

BASIC = "--model tiny-test --batch-size 4 --workers 0 --device cpu --precision fp32 --lr 1e-3 --save-frequency 0"


def argv(pairs, folder, *more):
    """The command line of a short run."""
    return [*BASIC.split(), "--log-every-n-steps", "1", "--train-data", pairs, "--output", str(folder), *more]


def run(pairs, folder, *more):
    """A short run in this process."""
    return train(read(argv(pairs, folder, *more), program="diptych train"))


def tensors(folder):
    return weights.load(folder).state_dict()


def assert_identical(one, other):
    for name, item in tensors(one).items():
        assert torch.equal(item, tensors(other)[name]), name


def losses(folder):
    rows = log.read_rows(folder / "metrics.jsonl")
    return [(row["step"], row["loss"]) for row in rows if row["phase"] == "train"]
