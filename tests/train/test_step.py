"""A step over micro-batches equals a step over the whole batch, whatever the number of processes."""

import copy

import pytest
import torch

from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.distributed.wrap import wrap
from diptych.models import create_model
from diptych.objectives import create_objective
from diptych.objectives.clip import ClipConfig
from diptych.train.optimizer import OptimizerOptions, create_optimizer, decays
from diptych.train.step import Step
from tests.distributed._processes import run_in_processes
from tests.objectives.worlds import make_batch, rows_of


def make_step(model="tiny-test", dtype=torch.float64, precision="fp32", clip_norm=0.0):
    torch.manual_seed(0)
    device = get_device("cpu")
    objective = create_objective(ClipConfig(), create_model(model, dtype=dtype))
    wrapped = wrap(objective, device, process_group.world_from_environment())
    return Step(wrapped, create_optimizer(wrapped, OptimizerOptions(lr=1e-2), device), device, precision, clip_norm)


def after_steps(parts, clip_norm=0.0, steps=3):
    """Losses, gradient norms and weights after some steps, this process's share of each batch cut into ``parts``."""
    here = process_group.world_from_environment()
    step = make_step(clip_norm=clip_norm)
    losses, norms = [], []
    for number in range(steps):
        batch = make_batch(12, seed=number)
        share = 12 // here.size
        own = rows_of(batch, here.rank * share, (here.rank + 1) * share)
        size = share // parts
        result = step([rows_of(own, start, start + size) for start in range(0, share, size)])
        losses.append(float(process_group.all_reduce_mean(result.loss)))
        norms.append(float(step.gradient_norm() if result.gradient_norm is None else result.gradient_norm))
    return losses, norms, {key: item.flatten().tolist() for key, item in step.objective.state_dict().items()}


def assert_same(one, other):
    assert one[0] == pytest.approx(other[0], abs=1e-10)
    assert one[1] == pytest.approx(other[1], rel=1e-8)
    for key, values in one[2].items():
        # Adam divides by the gradient's size: where that is nearly zero, rounding shows. Hence not 1e-12.
        assert torch.allclose(torch.tensor(other[2][key]), torch.tensor(values), atol=1e-5), key


@pytest.mark.parametrize("parts", [2, 3, 6])
@pytest.mark.parametrize("clip_norm", [0.0, 0.1])
def test_micro_batches_equal_the_full_batch(parts, clip_norm):
    assert_same(after_steps(1, clip_norm), after_steps(parts, clip_norm))


def test_micro_batches_on_two_processes_equal_one_process():
    expected = after_steps(1)
    for parts in (1, 3):
        for found in run_in_processes(2, after_steps, parts):
            assert_same(expected, found)


def test_the_logit_scale_is_capped_at_one_hundred():
    step = make_step()
    with torch.no_grad():
        step.objective.model.logit_scale.fill_(9.0)
    step([make_batch()])
    assert step.objective.model.logit_scale.exp().item() == pytest.approx(100.0)


def test_gradients_are_clipped_to_the_norm_that_was_asked():
    step = make_step(clip_norm=0.01)
    result = step([make_batch()])
    left = torch.linalg.vector_norm(torch.stack([item.grad.norm() for item in step.objective.parameters()]))
    assert float(result.gradient_norm) > 0.01
    assert float(left) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns_one_batch_by_heart(precision):
    step = make_step(dtype=torch.float32, precision=precision)
    losses = [float(step([make_batch()]).loss) for _ in range(25)]
    assert losses[-1] < 0.5 * losses[0]


def test_accumulating_updates_batch_norm_once_per_micro_batch():
    step = make_step("tiny-test-resnet", torch.float32)
    batch = make_batch()
    step([rows_of(batch, 0, 3), rows_of(batch, 3, 6)])
    counts = {int(item) for key, item in step.objective.state_dict().items() if key.endswith("num_batches_tracked")}
    assert counts == {2}


def test_only_matrices_decay():
    model = create_model("tiny-test")
    kept = {name for name, item in model.named_parameters() if decays(name, item)}
    assert "logit_scale" not in kept
    assert "image.class_embedding" not in kept
    assert "image.layers.0.ln_1.weight" not in kept
    assert "text.layers.0.mlp_in.bias" not in kept
    assert {"text.token_embedding.weight", "image.positional_embedding", "image.patch_embedding.weight"} <= kept


def test_state_restores_the_optimiser():
    one, other = make_step(), make_step()
    one([make_batch(seed=1)])
    other.objective.load_state_dict(one.objective.state_dict())
    other.restore(copy.deepcopy(one.state()))
    one([make_batch(seed=2)])
    other([make_batch(seed=2)])
    for key, item in one.objective.state_dict().items():
        assert torch.equal(item, other.objective.state_dict()[key]), key
