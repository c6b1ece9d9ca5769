"""Two processes whose device decides on the step take the steps that hosts decide on, whatever lies on which process."""

import pytest
import torch

from diptych.devices.cpu import Cpu
from diptych.distributed import process_group
from diptych.distributed.mesh import ParallelOptions
from diptych.train.optimizer import OptimizerOptions
from diptych.train.step import create_step
from tests.distributed._processes import run_in_processes
from tests.objectives.worlds import EXAMPLES, batch_for, make_objective, own_rows
from tests.train.test_gate import Queued, assert_equal

BAD, STEPS = 1, 3
LAYOUTS = {
    "replicas": ParallelOptions(),
    "stage3": ParallelOptions(sharding="stage3"),
    "tensor": ParallelOptions(tensor_parallel_degree=2),
}


def take_steps(layout, optimizers):
    """Whether each step was finite, and the state after all of them, of either device and each optimizer."""
    world, outcomes = process_group.world_from_environment(), {}
    for name in optimizers:
        for device in (Cpu(), Queued()):
            objective = make_objective(EXAMPLES["siglip-1"], torch.float64)
            compare, objective.number = objective.compare, 0

            def compared(features, pairs, own=objective, compare=compare):
                terms = compare(features, pairs)
                factor = float("nan") if own.number == BAD and process_group.rank(own.group) == 0 else 1.0
                return terms._replace(losses={name: item * factor for name, item in terms.losses.items()})

            objective.compare = compared
            options = OptimizerOptions(lr=1e-2, optimizer=name, ema=0.9, grad_clip_norm=0.5)
            step = create_step(objective, options, device, "fp32", world, parallel=LAYOUTS[layout])
            finite = []
            for number in range(STEPS):
                objective.number = number
                batch = own_rows(batch_for(objective, 8, seed=number), step.layout.data_world)
                finite.append(bool(step([batch]).finite))
            state = {"weights": step.layout.full_state(), **step.state()}
            outcomes[name, device.asynchronous] = (
                finite,
                {key: value.numpy().copy() for key, value in _flat(state).items()},
            )
    return outcomes


def _flat(state, name=""):
    if isinstance(state, dict):
        return {key: item for own, value in state.items() for key, item in _flat(value, f"{name}/{own}").items()}
    return {name: state.detach()} if isinstance(state, torch.Tensor) else {}


@pytest.mark.slow
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_two_processes_take_the_same_steps(layout):
    optimizers = ("adamw", "lamb", "sgd")
    for outcomes in run_in_processes(2, take_steps, layout, optimizers, limit=600.0):
        for name in optimizers:
            (finite, state), (there, state_there) = (outcomes[name, queued] for queued in (False, True))
            assert finite == there == [True, False, True]
            one, other = ({key: torch.from_numpy(item) for key, item in each.items()} for each in (state, state_there))
            assert one
            assert_equal(one, other, 1e-12)
