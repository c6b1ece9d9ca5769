"""One optimizer step: clipping, the range of the scale, precisions, statistics, and what an overflow skips."""

import copy

import pytest
import torch

from diptych.devices import get_device
from diptych.distributed.parallel import parallelize
from diptych.distributed.process_group import World
from diptych.errors import ConfigError
from diptych.models import create_model
from diptych.objectives import create_objective
from diptych.objectives.clip import Clip, ClipConfig
from diptych.train.optimizer import OptimizerOptions, create_optimizer
from diptych.train.step import Step
from tests.objectives.worlds import make_batch, pieces_of


class Counting(Clip):
    """CLIP, counting its steps."""

    def __init__(self, config, model, load=None):
        super().__init__(config, model, load)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def after_step(self, features, pairs):
        assert not features.image.requires_grad and len(pairs.keys) == len(features.image)
        self.steps += 1


def make_step(model="tiny-test", dtype=torch.float64, precision="fp32", clip_norm=0.0, objective=None):
    torch.manual_seed(0)
    device = get_device("cpu")
    built = create_model(model, dtype=dtype)
    layout = parallelize((objective or create_objective)(ClipConfig(), built), device, World())
    optimizer = create_optimizer(layout.trainable(), built, OptimizerOptions(lr=1e-2), device)
    return Step(layout, optimizer, device, precision, clip_norm)


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_micro_batches_equal_the_whole_batch_when_clipped(parts):
    results = []
    for count in (1, parts):
        step = make_step(clip_norm=0.1)
        norms = [float(step(pieces_of(make_batch(12, seed=seed), count)).gradient_norm) for seed in range(3)]
        results.append((norms, step.layout.full_state()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-8)
    for key, item in results[0][1].items():
        # Adam divides by the gradient's size: where that is nearly zero, rounding shows. Hence not 1e-12.
        assert torch.allclose(results[1][1][key], item, atol=1e-5), key


@pytest.mark.parametrize(("start", "expected"), [(9.0, 100.0), (-3.0, 1.0)])
def test_the_logit_scale_stays_in_its_range(start, expected):
    step = make_step()
    with torch.no_grad():
        step.layout.objective.model.logit_scale.fill_(start)
    step([make_batch()])
    assert step.layout.objective.model.logit_scale.exp().item() == pytest.approx(expected)


def test_an_objective_may_leave_the_scale_free():
    class Free(Clip):
        scale_range = None

    step = make_step(objective=Free)
    with torch.no_grad():
        step.layout.objective.model.logit_scale.fill_(6.0)
    step([make_batch()])
    assert step.layout.objective.model.logit_scale.item() > 5.5


def test_gradients_are_clipped_to_the_norm_that_was_asked():
    step = make_step(clip_norm=0.01)
    result = step([make_batch()])
    norm = torch.linalg.vector_norm(torch.stack([item.grad.norm() for _, item in step.layout.trainable()]))
    assert float(result.gradient_norm) > 0.01
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_gradients_below_the_norm_are_left_alone():
    plain, clipped = make_step(), make_step(clip_norm=1e6)
    expected = plain([make_batch()])
    result = clipped([make_batch()])
    assert torch.equal(result.gradient_norm, expected.gradient_norm)
    for (name, item), (_, other) in zip(plain.layout.trainable(), clipped.layout.trainable(), strict=True):
        assert torch.equal(item.grad, other.grad), name


def test_the_gradient_norm_is_that_of_all_gradients():
    step = make_step()
    result = step([make_batch()])
    expected = sum(float(item.grad.square().sum()) for _, item in step.layout.trainable()) ** 0.5
    assert float(result.gradient_norm) == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("parts", [1, 2])
def test_every_precision_learns_one_batch_by_heart(precision, parts):
    step = make_step(dtype=torch.float32, precision=precision)
    losses = [float(step(pieces_of(make_batch(), parts)).loss) for _ in range(25)]
    assert losses[-1] < 0.5 * losses[0]


def test_an_overflow_in_fp16_moves_neither_weights_nor_state():
    step = make_step(dtype=torch.float32, precision="fp16", objective=Counting)
    step([make_batch()])
    assert int(step.layout.objective.steps) == 1
    before = copy.deepcopy(step.layout.full_state())
    step.scaler.update(2.0**120)  # gradients times this overflow
    scale = step.scaler.get_scale()
    step([make_batch(seed=1)])
    assert step.scaler.get_scale() < scale
    for key, item in step.layout.full_state().items():
        assert torch.equal(item, before[key]), key


def test_after_step_runs_once_per_step_whatever_the_number_of_micro_batches():
    step = make_step(objective=Counting)
    step([make_batch()])
    step(pieces_of(make_batch(), 3))
    assert int(step.layout.objective.steps) == 2


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_batch_norm_statistics_move_once_per_micro_batch(parts):
    # The reference: the same micro-batches encoded once each, in a graph of their own.
    step, other = (make_step("tiny-test-resnet", torch.float32).layout.objective for _ in range(2))
    trained = make_step("tiny-test-resnet", torch.float32)
    pieces = pieces_of(make_batch(), parts)
    trained(pieces)
    with torch.no_grad():
        for piece in pieces:
            other.encode(piece)
    statistics = dict(other.named_buffers())
    moved = 0
    for key, item in trained.layout.objective.named_buffers():
        assert torch.equal(item, statistics[key]), key
        moved += not torch.equal(item, dict(step.named_buffers())[key])
    assert moved > 0


def test_state_restores_the_optimizer():
    step, other = make_step(), make_step()
    step([make_batch(seed=1)])
    other.layout.load_full_state(step.layout.full_state())
    other.restore(copy.deepcopy(step.state()))
    step([make_batch(seed=2)])
    other([make_batch(seed=2)])
    for key, item in step.layout.full_state().items():
        assert torch.equal(item, other.layout.full_state()[key]), key


def test_state_of_other_parameters_is_refused():
    step, other = make_step(), make_step()
    step([make_batch(seed=1)])
    state = step.state()
    state["optimizer"]["groups"][0]["parameters"].pop()
    with pytest.raises(ConfigError, match="other parameters are trained"):
        other.restore(state)
