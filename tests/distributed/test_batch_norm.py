"""Synchronized batch normalization: two processes normalize as one, in values, gradients and running statistics."""

import numpy as np
import pytest
import torch

from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.distributed.batch_norm import GlobalBatchNorm2d
from diptych.distributed.mesh import ParallelOptions
from diptych.distributed.parallel import parallelize
from diptych.errors import ConfigError
from diptych.train.optimizer import OptimizerOptions, create_optimizer
from diptych.train.step import Step
from tests.objectives.worlds import EXAMPLES, batch_for, make_objective, own_rows

from ._processes import run_in_processes

RESNET = "clip-2"
LAYOUTS = (ParallelOptions(sync_batchnorm=True), ParallelOptions(sync_batchnorm=True, sharding="stage3"))


def test_alone_it_is_torchs_own():
    torch.manual_seed(0)
    x = torch.randn(5, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    plain, ours = torch.nn.BatchNorm2d(3).double(), torch.nn.BatchNorm2d(3).double()
    for norm in (plain, ours):
        torch.nn.init.constant_(norm.weight, 1.5)
        torch.nn.init.constant_(norm.bias, -0.5)
    ours.__class__ = GlobalBatchNorm2d
    weights = torch.randn(5, 3, 4, 2, dtype=torch.float64)
    results = []
    for norm in (plain, ours):
        value = norm(x)
        results.append((value, *torch.autograd.grad((value * weights).sum(), (x, norm.weight, norm.bias))))
        results[-1] += (norm.running_mean.clone(), norm.running_var.clone(), norm.num_batches_tracked.clone())
        results[-1] += (norm.eval()(x),)
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-12, rtol=0)


def trained(options):
    device, world = get_device("cpu"), process_group.world_from_environment()
    objective = make_objective(EXAMPLES[RESNET])
    layout = parallelize(objective, device, world, options)
    layout.train()
    step = Step(
        layout, create_optimizer(layout.trainable(), objective.model, OptimizerOptions(lr=1e-3), device), device, "fp32"
    )
    for number in range(3):
        step([own_rows(batch_for(objective, 8, seed=number), layout.data_world)])
    return {name: item.double().numpy().copy() for name, item in layout.full_state().items()}


def both_layouts():
    return [trained(options) for options in LAYOUTS]


@pytest.mark.heavy
def test_two_processes_equal_one():
    expected = trained(ParallelOptions())
    for results in run_in_processes(2, both_layouts):
        for state in results:
            for name, values in expected.items():
                np.testing.assert_allclose(state[name], values, rtol=0, atol=1e-9, err_msg=name)


def test_a_tower_without_batch_normalization_is_refused():
    objective = make_objective(EXAMPLES["clip-0"])
    with pytest.raises(ConfigError, match="--sync-batchnorm: tiny-test has no batch normalization"):
        parallelize(objective, get_device("cpu"), process_group.world_from_environment(), LAYOUTS[0])
