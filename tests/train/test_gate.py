"""A step whose decision stays on the device is the step that the host decides: weights, moments, queues, statistics, averages."""

import copy

import pytest
import torch

from diptych.devices.cpu import Cpu
from diptych.distributed.parallel import parallelize
from diptych.distributed.process_group import World
from diptych.train import gate
from diptych.train.algorithms import ALGORITHMS
from diptych.train.average import create_average
from diptych.train.gate import can_gate
from diptych.train.optimizer import OptimizerOptions, create_optimizer
from diptych.train.step import Step
from tests.objectives.worlds import EXAMPLES, batch_for, make_objective, pieces_of

BAD = (2, 4)  # steps whose loss is not a number, counted from 0
STEPS = 6
QUICK = ("declip-0", "fastclip-0", "slip-1")  # a queue, estimates, running statistics


class Queued(Cpu):
    """The CPU as if reading a value from it cost something."""

    asynchronous = True


def make_step(device, example="clip-0", dtype=torch.float64, precision="fp32", clip_norm=0.5, **options):
    options = OptimizerOptions(**{"lr": 1e-2, "ema": 0.9, **options})
    objective = make_objective(EXAMPLES[example], dtype)
    layout = parallelize(objective, device, World())
    layout.train()
    optimizer = create_optimizer(layout.trainable(), objective.model, options, device)
    step = Step(layout, optimizer, device, precision, clip_norm)
    step.average = create_average(layout, options.ema, options.ema_warmup)
    poison(objective)
    return step


def poison(objective):
    """Let the loss of the steps ``BAD`` be NaN, and so all gradients."""
    compare, objective.number = objective.compare, -1

    def compared(features, pairs):
        terms = compare(features, pairs)
        factor = float("nan") if objective.number in BAD else 1.0
        return terms._replace(losses={name: item * factor for name, item in terms.losses.items()})

    objective.compare = compared


def take(step, parts=1, steps=STEPS):
    """Whether each step was finite, and a copy of all state after it."""
    finite, states = [], []
    for number in range(steps):
        step.layout.objective.number = number
        result = step(pieces_of(batch_for(step.layout.objective, 8, seed=number), parts))
        finite.append(bool(result.finite))
        states.append(copy.deepcopy({"weights": step.layout.full_state(), **step.state()}))
    return finite, states


def flat(state, name=""):
    if isinstance(state, dict):
        return {key: item for own, value in state.items() for key, item in flat(value, f"{name}/{own}").items()}
    if isinstance(state, list):
        return flat(dict(enumerate(state)), name)
    return {name: state}


def assert_equal(one, other, tolerance=0.0):
    one, other = flat(one), flat(other)
    for name in one.keys() & other.keys():
        if isinstance(one[name], torch.Tensor):
            assert torch.allclose(one[name], other[name], rtol=0, atol=tolerance), name
    assert one.keys() == other.keys()


@pytest.mark.parametrize(
    "example", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(EXAMPLES)]
)
def test_every_objective_takes_the_same_steps(example):
    (finite, states), (there, states_there) = (take(make_step(device, example)) for device in (Cpu(), Queued()))
    assert finite == there == [number not in BAD for number in range(STEPS)]
    for one, other in zip(states, states_there, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize("part", [pytest.param(1 << 24, marks=pytest.mark.slow), 1000])
def test_every_optimizer_takes_the_same_steps(name, part, monkeypatch):
    monkeypatch.setattr(gate, "PART", part)
    steps = [make_step(device, optimizer=name, ema_warmup=True) for device in (Cpu(), Queued())]
    assert steps[0].gate is None and steps[1].gate is not None
    (finite, states), (there, states_there) = (take(step, parts=2) for step in steps)
    assert finite == there
    for one, other in zip(states, states_there, strict=True):
        assert_equal(one, other, 1e-13 if name == "lamb" else 1e-15)  # LAMB's corrections are made on the device


@pytest.mark.slow
def test_the_first_step_may_be_the_one_that_is_left_out():
    for name in sorted(ALGORITHMS):
        states = []
        for device in (Cpu(), Queued()):
            step = make_step(device, optimizer=name)
            for number in (BAD[0], 0, 1):
                step.layout.objective.number = number
                step([batch_for(step.layout.objective, 8, seed=number)])
            states.append({"weights": step.layout.full_state(), "average": step.state()["average"]})
        assert_equal(*states, 1e-13)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_an_overflow_in_fp16_is_left_out_alike(name):
    outcomes = []
    for device in (Cpu(), Queued()):
        step = make_step(device, dtype=torch.float32, precision="fp16", optimizer=name)
        first = take(step, steps=2)[1][-1]
        step.scaler.update(2.0**120)  # gradients times this overflow
        finite, (after,) = take(step, steps=1)
        assert finite == [True]
        assert_equal({**first, "scaler": 0}, {**after, "scaler": 0})
        outcomes.append((step.scaler.get_scale(), take(step)[1][-1]))
    assert outcomes[0][0] == outcomes[1][0] == 2.0**119
    assert_equal(outcomes[0][1], outcomes[1][1], 1e-6 if name == "lamb" else 0.0)


def test_a_scale_that_is_used_up_is_no_step():
    step = make_step(Queued(), dtype=torch.float32, precision="fp16")
    step.scaler.scale(torch.ones(1))  # makes the scale
    step.scaler.update(2.0**-15)
    before = copy.deepcopy(step.layout.full_state())
    finite, (after,) = take(step, steps=1)
    assert finite == [False]
    assert_equal(before, after["weights"])


def test_a_loss_that_is_no_number_does_not_spoil_the_next_step_of_fp16():
    for device in (Cpu(), Queued()):
        finite, _ = take(make_step(device, dtype=torch.float32, precision="fp16"))
        assert finite == [number not in BAD for number in range(STEPS)]


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_a_closed_gate_takes_no_step_any_more(allowed):
    step = make_step(Queued())
    step.gate.limit(allowed)
    _, states = take(step)
    last = BAD[allowed] - 1 if allowed < len(BAD) else STEPS - 1
    for later in states[last + 1 :]:
        assert_equal(states[last], later)
    if last + 1 < STEPS:
        host = make_step(Cpu())
        assert_equal(take(host, steps=last + 1)[1][-1], states[-1])


def test_an_optimizer_that_counts_on_the_host_cannot_be_gated():
    weight = torch.nn.Parameter(torch.zeros(2))
    assert not can_gate(torch.optim.AdamW([weight], fused=False))
    assert can_gate(torch.optim.AdamW([weight], fused=True)) and can_gate(torch.optim.SGD([weight], lr=1.0))
