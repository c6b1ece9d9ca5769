"""A step as everything but a training job makes it, and how its batches get to the device."""

import pytest
import torch

from diptych.devices import get_device
from diptych.models import create_model
from diptych.objectives import OBJECTIVES, create_objective
from diptych.train.optimizer import OptimizerOptions
from diptych.train.step import create_step
from diptych.train.transfer import move
from diptych.types import Wants
from tests.objectives.worlds import make_batch


def objective():
    torch.manual_seed(0)
    return create_objective(OBJECTIVES.get("clip").Config(), create_model("tiny-test"))


@pytest.mark.parametrize("clip_norm", [0.0, 1e-3])
def test_a_created_step_trains_with_its_options(clip_norm):
    trained = objective().eval()
    before = {name: item.clone() for name, item in trained.state_dict().items()}
    options = OptimizerOptions(lr=1e-2, wd=0.125, beta1=0.5, beta2=0.75, grad_clip_norm=clip_norm)
    step = create_step(trained, options, get_device("cpu"))
    assert trained.training
    result = step([make_batch(6)])
    assert float(result.loss) > 0
    assert float(result.gradient_norm) > 1e-3
    assert any(not torch.equal(before[name], item) for name, item in trained.state_dict().items())
    for group in step.optimizer.param_groups:
        assert group["betas"] == (0.5, 0.75)
        assert group["weight_decay"] in (0.0, 0.125)
        assert group["lr"] == 1e-2


def test_half_precision_is_the_one_that_was_asked_for():
    losses = [
        create_step(objective(), OptimizerOptions(), get_device("cpu"), precision)([make_batch(6)]).loss
        for precision in ("fp32", "fp32", "bf16")
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("masked", [False, True])
def test_every_tensor_of_a_batch_moves_and_nothing_else_changes(masked):
    batch = make_batch(4, Wants(masked=masked))
    moved = move(batch, torch.device("meta"))
    tensors = [item for item in (*moved, *(moved.masked or ())) if isinstance(item, torch.Tensor)]
    assert len(tensors) == (
        9 if masked else 6
    )  # with it goes where tokens are predicted, which only the host can say at once
    assert (moved.predicted is not None) == masked
    assert all(item.is_meta for item in tensors)
    assert (moved.keys, moved.epoch, type(moved.masked)) == (batch.keys, batch.epoch, type(batch.masked))
    same = move(batch, torch.device("cpu"))
    assert torch.equal(same.tokens, batch.tokens)
    assert not masked or torch.equal(same.masked.targets, batch.masked.targets)
