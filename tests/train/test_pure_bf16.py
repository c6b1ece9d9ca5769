"""Towers stored in bf16, moved through fp32 copies: what is stored how, how near to fp32 it trains, resuming, what is refused."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from diptych.devices import get_device
from diptych.distributed import checkpoint
from diptych.distributed.mesh import ParallelOptions
from diptych.distributed.parallel import stored_weights
from diptych.distributed.precisions import precision_of
from diptych.errors import ConfigError, DeviceError
from diptych.train.optimizer import OptimizerOptions
from diptych.train.step import create_step
from tests.objectives.worlds import EXAMPLES, batch_for, make_objective, pieces_of

from .runs import assert_identical, losses, run

# Of docs/precision.md: against the fp32 run of the same batches.
MEAN_GAP, LARGEST_GAP, WEIGHT_GAP = 0.03, 0.12, 0.12
RESNET = next(name for name, item in EXAMPLES.items() if item.preset == "tiny-test-resnet")


def make_step(precision="pure_bf16", masters="fp32", example="clip-0", lock=False, **options):
    objective = make_objective(EXAMPLES[example], torch.float32)
    objective.model.lock(image=lock)
    chosen = OptimizerOptions(**{"lr": 1e-3, **options})
    return create_step(
        objective, chosen, get_device("cpu"), precision, parallel=ParallelOptions(master_weights=masters)
    )


def take(step, numbers, parts=1):
    return [float(step(pieces_of(batch_for(step.layout.objective, 8, seed=number), parts)).loss) for number in numbers]


def state_of(step):
    return copy.deepcopy((step.layout.full_state(), step.state()))


def gap(state, other, start):
    """The distance of two states, as a share of the way from the start to the second."""

    def distance(first, second):
        names = [name for name, item in first.items() if item.is_floating_point()]
        return sum(float((first[name].double() - second[name].double()).square().sum()) for name in names) ** 0.5

    return distance(state, other) / distance(other, start)


@pytest.mark.parametrize("example", ["clip-0", RESNET])
def test_towers_are_stored_in_bf16_and_everything_that_is_summed_up_in_fp32(example):
    step = make_step(example=example)
    take(step, range(2))
    model = step.layout.objective.model
    norms = [item for item in model.modules() if isinstance(item, torch.nn.BatchNorm2d)]
    assert bool(norms) == (example == RESNET)
    exact = {id(own) for norm in norms for own in norm.parameters()} | {id(model.logit_scale)}
    for name, item in step.layout.objective.named_parameters():
        tower = name.startswith(("model.image.", "model.text."))
        assert item.dtype == (torch.bfloat16 if tower and id(item) not in exact else torch.float32), name
    assert all(item.dtype == torch.float32 for item in model.buffers() if item.is_floating_point())
    assert all(item.dtype == torch.float32 for _, item in step.layout.trainable())
    moments = [item for state in step.optimizer.state.values() for item in state.values()]
    assert len(moments) > 10 and all(item.dtype == torch.float32 for item in moments)


def test_weights_are_the_rounding_of_their_copies_and_gradients_are_theirs():
    step = make_step(ema=0.9)
    gradients = {}
    take_gradients = step.layout.masters.take_gradients

    def watched():
        for name, item in step.layout.objective.named_parameters():
            gradients[name] = item.grad.clone()
        take_gradients()

    step.layout.masters.take_gradients = watched
    take(step, range(3))
    named, trained = dict(step.layout.objective.named_parameters()), dict(step.layout.trainable())
    copies = {name: item for name, item in trained.items() if item is not named[name]}
    assert len(copies) == len(named) - 1
    for name, item in copies.items():
        assert torch.equal(named[name], item.to(torch.bfloat16)), name
        assert not torch.equal(named[name].float(), item) or not item.any(), name
        assert gradients[name].dtype == torch.bfloat16 and torch.equal(item.grad, gradients[name].float())
        assert named[name].grad is None
    with step.average.applied():
        for name, average in step.average.whole().items():  # swapped: these are the trained ones
            assert torch.equal(named[name], trained[name].to(named[name].dtype)), name
            assert not torch.equal(average, trained[name]) or not average.any()
    assert all(torch.equal(named[name], item.to(torch.bfloat16)) for name, item in copies.items())


def test_towers_compute_without_autocast_and_heads_within():
    step, seen = make_step(example="superclip-0"), {}
    objective = step.layout.objective

    def hook(name):
        return lambda module, inputs, output: seen.update({name: (output.dtype, torch.is_autocast_enabled("cpu"))})

    for name in ("model.image.layers.0.ln_1", "model.text.layers.0.mlp_out", "classifier"):
        objective.get_submodule(name).register_forward_hook(hook(name))
    take(step, [0])
    assert seen["model.image.layers.0.ln_1"] == seen["model.text.layers.0.mlp_out"] == (torch.bfloat16, False)
    assert seen["classifier"][1] and objective.classifier.weight.dtype == torch.float32


def trained_beside_fp32(steps, masters="fp32", **options):
    """Gaps of losses and the gap of the weights after the steps."""
    exact, pure = make_step("fp32", **options), make_step(masters=masters, **options)
    start = copy.deepcopy(exact.layout.full_state())
    gaps = [abs(a - b) for a, b in zip(take(exact, range(steps)), take(pure, range(steps)), strict=True)]
    return gaps, gap(pure.layout.full_state(), exact.layout.full_state(), start)


@pytest.mark.parametrize("options", [{}, {"grad_clip_norm": 0.1, "optimizer": "lamb"}], ids=["plain", "lamb, clipped"])
def test_a_few_steps_are_near_those_in_fp32(options):
    gaps, weights = trained_beside_fp32(8, **options)
    assert sum(gaps) / len(gaps) < MEAN_GAP and max(gaps) < LARGEST_GAP and weights < WEIGHT_GAP


@pytest.mark.slow
@pytest.mark.parametrize("example", ["clip-0", "siglip-0", "superclip-0", RESNET])
@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon", "sgd"])
def test_fifty_steps_are_near_those_in_fp32(example, optimizer):
    gaps, weights = trained_beside_fp32(50, example=example, optimizer=optimizer, grad_clip_norm=1.0)
    assert sum(gaps) / len(gaps) < MEAN_GAP and max(gaps) < LARGEST_GAP and weights < WEIGHT_GAP


def test_updates_below_a_step_of_bf16_are_lost_without_copies_only():
    for masters, moves in (("fp32", True), ("none", False)):
        step = make_step(masters=masters, lr=1e-7, wd=0.0)
        name = "model.text.positional_embedding"
        with torch.no_grad():  # a step of bf16 is 2^-7 here
            dict(step.layout.trainable())[name].fill_(1.0)
        step.layout.round_weights()
        take(step, range(4))
        moved = step.layout.full_state()[name]
        assert bool((moved != 1.0).any()) == moves
        assert moved.dtype == (torch.float32 if moves else torch.bfloat16)


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "muon", "sgd"])
@pytest.mark.parametrize("masters", ["fp32", "none"])
def test_a_step_resumes_bit_for_bit(optimizer, masters):
    options = {"masters": masters, "optimizer": optimizer, "grad_clip_norm": 0.5, "ema": 0.9}
    step = make_step(**options)
    take(step, range(2), parts=2)
    weights, rest = state_of(step)
    assert weights["model.text.projection.weight"].dtype == (torch.float32 if masters == "fp32" else torch.bfloat16)
    resumed = make_step(**options)
    resumed.layout.load_full_state(weights)
    resumed.restore(rest)
    for one in (step, resumed):
        take(one, range(2, 4), parts=2)
    own, other = state_of(step), state_of(resumed)
    assert all(torch.equal(item, other[0][name]) for name, item in own[0].items())
    assert all(
        torch.equal(item, other[1]["average"]["averages"][name]) for name, item in own[1]["average"]["averages"].items()
    )


@pytest.mark.parametrize("first", [("fp32", "fp32"), ("pure_bf16", "none")])
def test_a_run_in_another_precision_goes_on_in_pure_bf16(first):
    before, after = make_step(*first), make_step()
    take(before, range(2))
    weights, rest = state_of(before)
    after.layout.load_full_state(weights)
    after.restore(rest)
    assert all(torch.equal(item, weights[name].float()) for name, item in after.layout.full_state().items())
    take(after, [2])
    moments = [item for state in after.optimizer.state.values() for item in state.values()]
    assert all(item.dtype == torch.float32 for item in moments)


def test_groups_of_parameters_are_those_of_fp32():
    options = {"wd_exclude": ("*.ln_1.*",), "visual_lr": 1e-4, "image_layer_decay": 0.5, "optimizer": "muon"}
    described = []
    for precision in ("fp32", "pure_bf16"):
        step = make_step(precision, **options)
        state = step.layout.optimizer_state(step.optimizer)["groups"]
        described.append([(group["parameters"], group["peak_lr"], group["weight_decay"]) for group in state])
    assert described[0] == described[1] and len(described[0]) > 4


def test_a_locked_tower_is_rounded_once_and_has_no_copy(capsys):
    step, exact = make_step(lock=True), make_step("fp32", lock=True)
    take(step, range(2))
    assert "locked parameters are rounded to bf16, and saved so" in capsys.readouterr().err
    start = exact.layout.full_state()
    for name, item in step.layout.full_state().items():
        if name.startswith("model.image.") and name.split(".")[-1] not in ("mean", "std"):
            assert item.dtype == torch.bfloat16 and torch.equal(item, start[name].to(torch.bfloat16)), name
    assert not any(name.startswith("model.image.") for name, _ in step.layout.masters.items())


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_and_ends_with_weights_in_fp32(pairs, tmp_path):
    more = ["--precision", "pure_bf16", "--ema", "0.9", "--grad-clip-norm", "0.5", "--micro-batch", "2"]
    run(pairs, tmp_path / "whole", "--max-steps", "7", *more)
    run(pairs, tmp_path / "parts", "--max-steps", "7", "--stop-after", "3", *more)
    run(pairs, tmp_path / "parts", "--resume", "latest", *more)
    assert_identical(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    state = checkpoint.load(checkpoint.path_of(tmp_path / "whole" / "checkpoints", 7))["weights"]
    for name in ("model.safetensors", "model_ema.safetensors"):
        stored = load_file(tmp_path / "whole" / name)
        assert {item.dtype for item in stored.values()} == {torch.float32}
    weight = load_file(tmp_path / "whole" / "model.safetensors")["text.projection.weight"]
    assert torch.equal(weight, state["model.text.projection.weight"])
    assert not torch.equal(weight, weight.bfloat16().float())


def test_a_run_without_copies_ends_with_weights_in_bf16(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "2", "--precision", "pure_bf16", "--master-weights", "none")
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert stored["text.projection.weight"].dtype == torch.bfloat16
    assert stored["logit_scale"].dtype == torch.float32


def test_what_cannot_be_stored_so_is_one_line(pairs, tmp_path):
    with pytest.raises(ConfigError, match=r"--precision pure_fp16: .*; take pure_bf16, or fp16"):
        precision_of("pure_fp16")
    assert precision_of("pure_bf16") == "pure_bf16"
    with pytest.raises(ConfigError, match="--master-weights none goes with --precision pure_bf16: in bf16 the weights"):
        run(pairs, tmp_path / "a", "--precision", "bf16", "--master-weights", "none")
    resnet = make_objective(EXAMPLES[RESNET], torch.float32)
    with pytest.raises(ConfigError, match="batch normalization, which stays in fp32, and --sharding") as error:
        stored_weights(resnet, ParallelOptions(sharding="stage2"), "pure_bf16")
    assert "\n" not in str(error.value)
    resnet.model.image.requires_grad_(False)
    assert stored_weights(resnet, ParallelOptions(sharding="stage2"), "pure_bf16").dtype == torch.bfloat16


def test_a_device_without_bf16_refuses_before_the_first_step():
    device = get_device("cpu")
    device.computes_in = lambda dtype: dtype is torch.float16
    with pytest.raises(DeviceError, match="--precision pure_bf16: cpu does not compute in it"):
        create_step(make_objective(EXAMPLES["clip-0"], torch.float32), OptimizerOptions(), device, "pure_bf16")
