"""Every layout equals one process: loss, every gradient, and weights after five AdamW steps, in float64 to 1e-10.

Replicas, the stages of sharding, replicas of shards, split layers and both, with and without micro-batches, with clipping, with
a frozen tower, with shards of unequal size (17 positions over two and four processes), for CLIP's and SigLIP's loss and for one
with a head.
"""

import numpy as np
import pytest
import torch

from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.distributed._full_state import full
from diptych.distributed.mesh import ParallelOptions
from diptych.distributed.parallel import parallelize
from diptych.errors import ConfigError
from diptych.train.optimizer import OptimizerOptions, create_optimizer
from diptych.train.step import Step
from tests.objectives.worlds import EXAMPLES, batch_for, make_objective, own_rows, pieces_of

from ._processes import run_in_processes

OBJECTIVES = ("clip-0", "siglip-0", "superclip-0")
TWO = {
    "replicated": ParallelOptions(),
    "stage1": ParallelOptions(sharding="stage1"),
    "stage2": ParallelOptions(sharding="stage2"),
    "stage3": ParallelOptions(sharding="stage3"),
    "tensor": ParallelOptions(tensor_parallel_degree=2),
}
FOUR = {
    "stage3": ParallelOptions(sharding="stage3"),
    "replicas of shards": ParallelOptions(sharding="stage2", sharding_parallel_degree=2),
    "tensor": ParallelOptions(tensor_parallel_degree=2),
    "tensor, stage2": ParallelOptions(sharding="stage2", tensor_parallel_degree=2),
    "tensor, stage3": ParallelOptions(sharding="stage3", tensor_parallel_degree=2),
}
CASES = {
    "plain": {},
    "micro-batches": {"parts": 2},
    "clipped": {"clip": 0.05, "parts": 2},
    "frozen image tower": {"lock": True, "parts": 2},
    "lamb": {"optimizer": "lamb", "parts": 2},
    "sgd": {"optimizer": "sgd", "parts": 2},
}


def refused_muon():
    """What is said of matrices in parts, by layout."""
    messages = []
    for options in (TWO["stage2"], TWO["tensor"]):
        with pytest.raises(ConfigError, match="--optimizer muon takes products of whole matrices") as error:
            trained("clip-0", options, optimizer="muon")
        messages.append(str(error.value))
    return messages


def trained(example, options, *, dtype=torch.float64, steps=5, checkpointing=False, **case):
    """Losses of the steps, the last gradients and the weights after them, whole, as arrays."""
    device, world = get_device("cpu"), process_group.world_from_environment()
    objective = make_objective(EXAMPLES[example], dtype)
    objective.model.lock(image=case.get("lock", False))
    for tower in (objective.model.image, objective.model.text):
        tower.checkpoint_activations(checkpointing)
    layout = parallelize(objective, device, world, options)
    layout.train()
    for module in objective.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    optimizer = create_optimizer(
        layout.trainable(), objective.model, OptimizerOptions(lr=1e-3, optimizer=case.get("optimizer", "adamw")), device
    )
    step, losses = Step(layout, optimizer, device, "fp32", case.get("clip", 0.0)), []
    for number in range(steps):
        share = own_rows(batch_for(objective, 8, seed=number), layout.data_world)
        result = step(pieces_of(share, case.get("parts", 1)))
        losses.append(process_group.all_reduce_mean(result.loss.double(), layout.group).item())
    gradients = {name: full(item.grad) for name, item in layout.trainable()}
    states = ({key: item.numpy().copy() for key, item in part.items()} for part in (gradients, layout.full_state()))
    return [np.array(losses), *states]


def every_case(layouts, quick):
    """Results by layout, objective and case; ``quick`` takes one objective in micro-batches."""
    some = ("plain", "micro-batches")
    cases = {"clip-0": some[1:]} if quick else {**dict.fromkeys(OBJECTIVES, some), "clip-0": tuple(CASES)}
    return {
        (layout, example, case): trained(example, options, **CASES[case])
        for layout, options in layouts.items()
        for example in cases
        for case in cases[example]
    }


def assert_equal(actual, expected, where):
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-10, err_msg=f"{where} loss")
    for own, wanted in zip(actual[1:], expected[1:], strict=True):
        assert own.keys() == wanted.keys()
        for name, values in wanted.items():
            np.testing.assert_allclose(own[name], values, rtol=0, atol=1e-10, err_msg=f"{where} {name}")


def check(processes, layouts, quick=False):
    results = run_in_processes(processes, every_case, layouts, quick, limit=1200)
    expected = {}
    for (layout, example, case), _ in results[0].items():
        if (example, case) not in expected:
            expected[example, case] = trained(example, ParallelOptions(), **{**CASES[case], "parts": 1})
        for rank in results:
            assert_equal(rank[layout, example, case], expected[example, case], (layout, example, case))


@pytest.mark.heavy
def test_two_processes_equal_one():
    check(2, {name: TWO[name] for name in ("stage1", "stage3", "tensor")}, quick=True)


def test_an_optimizer_that_needs_whole_matrices_is_refused():
    assert len(run_in_processes(2, refused_muon)[0]) == 2


@pytest.mark.slow
def test_two_processes_equal_one_under_every_layout():
    check(2, TWO)


@pytest.mark.slow
def test_four_processes_equal_one_under_every_layout():
    check(4, FOUR)
