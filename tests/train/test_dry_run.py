"""What is counted without memory against what torch's profiler sees allocated in the same passes on real tensors."""

import functools

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from diptych.devices import get_device
from diptych.models import create_model, model_config
from diptych.objectives import OBJECTIVES, create_objective, differentiable
from diptych.train.dry_run import dry_run, trial_batch

TOLERANCE = 0.25


def clip(name, device=None):
    return create_objective(OBJECTIVES.get("clip").Config(), create_model(name, device=device)).train()


def peak_of(call):
    """Most bytes allocated at once while the call runs, by the profiler's own record of the allocator."""
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measured(objective, pairs, tokens, precision):
    batch = trial_batch(objective.model.config, objective.wants, pairs, tokens)
    batch = batch._replace(images=torch.zeros(batch.images.shape, dtype=torch.uint8))
    for item in objective.parameters():
        item.grad = torch.zeros_like(item) if item.requires_grad else None

    def passes():
        with get_device("cpu").autocast(precision):
            features, _ = objective("features", batch)
        outputs = [item for item in features if differentiable(item) and item.requires_grad]
        torch.autograd.backward(outputs, [torch.ones_like(item) for item in outputs])

    return peak_of(passes)


def counted(objective, pairs, tokens, precision):
    batch = trial_batch(objective.model.config, objective.wants, pairs, tokens)
    autocast = functools.partial(get_device("cpu").autocast, precision)
    return dry_run(objective, batch, autocast).activations


@pytest.mark.parametrize(
    ("name", "pairs", "precision", "checkpointing", "lock"),
    [
        ("tiny-test", 64, "fp32", False, False),
        pytest.param("tiny-test", 8, "fp32", False, False, marks=pytest.mark.slow),  # as a micro-batch of the 64
        ("tiny-test", 64, "fp32", True, False),
        pytest.param("tiny-test", 64, "bf16", False, False, marks=pytest.mark.slow),
        pytest.param("tiny-test", 64, "fp32", False, True, marks=pytest.mark.slow),
        pytest.param("tiny-test-resnet", 16, "fp32", False, False, marks=pytest.mark.slow),
        ("tiny-test-resnet", 16, "fp32", True, False),
        pytest.param("tiny-test-siglip", 32, "fp32", False, False, marks=pytest.mark.slow),
    ],
)
def test_activations_are_those_that_real_passes_hold(name, pairs, precision, checkpointing, lock):
    objective = clip(name)
    objective.model.lock(image=lock)
    objective.model.checkpoint_activations(checkpointing)
    own, real = counted(objective, pairs, 12, precision), measured(objective, pairs, 12, precision)
    assert own == pytest.approx(real, rel=TOLERANCE), own / real


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["ViT-B-32", "RN50"])
def test_activations_of_presets_are_those_that_real_passes_hold(name, checkpointing):
    objective = clip(name)
    objective.model.checkpoint_activations(checkpointing)
    own, real = counted(objective, 4, 16, "fp32"), measured(objective, 4, 16, "fp32")
    assert own == pytest.approx(real, rel=TOLERANCE), own / real


def test_counting_changes_nothing_and_needs_no_memory():
    objective = clip("tiny-test-resnet")
    before = {name: item.clone() for name, item in objective.state_dict().items()}
    first = counted(objective, 16, 12, "fp32")
    assert all(torch.equal(item, before[name]) for name, item in objective.state_dict().items())
    assert all(item.grad is None for item in objective.parameters())
    assert counted(clip("tiny-test-resnet", device="meta"), 16, 12, "fp32") == first


def test_elsewhere_attention_of_half_precision_stays_in_it():
    objective = clip("tiny-test", device="meta")
    batch = trial_batch(model_config("tiny-test"), objective.wants, 32)
    autocast = functools.partial(get_device("cpu").autocast, "bf16")
    here, there = (dry_run(objective, batch, autocast, elsewhere=away).activations for away in (False, True))
    assert there < here
