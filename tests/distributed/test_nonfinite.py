"""A loss that is not finite on one process alone: no process takes the step, weights stay equal, the report has all ranks."""

import json

import numpy as np
import pytest
import torch

from diptych.data import START
from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.objectives.clip import Clip
from diptych.train.nonfinite import SkippedSteps
from diptych.train.optimizer import OptimizerOptions
from diptych.train.step import create_step
from tests.objectives.worlds import EXAMPLES, batch_for, make_model, own_rows, pieces_of

from ._processes import run_in_processes

STEPS, BAD = 4, 2


class NaNOnOne(Clip):
    """CLIP whose loss at one step is not a number on rank 1 alone; with ``gradient``, its gradient there is neither."""

    gradient = False
    taken = 0

    def compare(self, features, pairs):
        terms = super().compare(features, pairs)
        if self.taken != BAD or process_group.world_from_environment().rank != 1:
            return terms
        wrong = float("nan") * (features.image.sum() if self.gradient else 1.0)
        return terms._replace(losses={name: item + wrong for name, item in terms.losses.items()})


def take_steps(folder, parts, gradient):
    """What each process saw: whether the steps were taken, their losses, and the weights before, during and after."""
    world = process_group.world_from_environment()
    example = EXAMPLES["clip-0"]
    objective = NaNOnOne(example.options, make_model(example))
    objective.gradient = gradient
    step = create_step(objective, OptimizerOptions(lr=1e-2), get_device("cpu"), "fp32", world)
    skipped = SkippedSteps(folder, allowed=1)
    finite, losses, states = [], [], []
    for number in range(STEPS):
        batch = own_rows(batch_for(objective, 8, seed=number), world)
        batches = pieces_of(batch, parts)
        objective.taken = number
        result = step(batches)
        finite.append(result.finite)
        losses.append(float(result.loss))
        if not result.finite:
            assert skipped.leave_out(skipped.facts(number, START, batches, step, result), step)
        states.append({name: item.detach().numpy().copy() for name, item in step.layout.full_state().items()})
    return finite, losses, states


def equal(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("parts", "gradient"), [(1, False), (2, False), (1, True)])
def test_both_processes_leave_out_a_step_that_is_not_finite_on_one(tmp_path, parts, gradient):
    (first, losses, states), (second, other_losses, other_states) = run_in_processes(
        2, take_steps, tmp_path, parts, gradient
    )
    assert first == second == [number != BAD for number in range(STEPS)]
    assert np.isfinite(losses[BAD]) or gradient
    assert np.isnan(other_losses[BAD])
    for number in range(STEPS):
        assert equal(states[number], other_states[number])
        assert number == 0 or equal(states[number], states[number - 1]) is (number == BAD)
    assert all(np.isfinite(item).all() for item in states[-1].values())
    (report,) = tmp_path.glob("nonfinite_step_*.json")
    ranks = json.loads(report.read_text())["ranks"]
    assert [len(rank["keys"]) for rank in ranks] == [4, 4]
    assert [bool(torch.tensor(list(rank["losses"].values())).isfinite().all()) for rank in ranks] == [True, False]
