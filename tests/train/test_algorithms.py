"""Each optimizer by name: its own defaults and options, which parameters Muon moves, and runs that resume bit for bit."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from diptych.commands import main
from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.errors import ConfigError
from diptych.models import create_model
from diptych.objectives import create_objective
from diptych.objectives.clip import ClipConfig
from diptych.train.algorithms import ALGORITHMS
from diptych.train.lamb import Lamb
from diptych.train.muon import MuonWithAdamW
from diptych.train.optimizer import OptimizerOptions, create_optimizer
from diptych.train.step import create_step
from tests.distributed._processes import run_in_processes
from tests.objectives.worlds import make_batch, own_rows, pieces_of

from .runs import argv, assert_identical, losses, run

RATES = {"adamw": "1e-3", "lamb": "1e-2", "muon": "1e-3", "sgd": "0.1"}


def step_with(model="tiny-test", **options):
    torch.manual_seed(0)
    objective = create_objective(ClipConfig(), create_model(model, dtype=torch.float64))
    return create_step(objective, OptimizerOptions(**options), get_device("cpu"))


def groups_of(optimizer, step):
    names = {id(item): name for name, item in step.layout.objective.named_parameters()}
    return [([names[id(item)] for item in group["params"]], group) for group in optimizer.param_groups]


def test_what_is_not_given_is_the_default_of_the_algorithm():
    lamb = step_with(optimizer="lamb").optimizer
    assert isinstance(lamb, Lamb)
    assert {(*group["betas"], group["eps"]) for group in lamb.param_groups} == {(0.9, 0.999, 1e-6)}
    sgd = step_with(optimizer="sgd", wd=0.1).optimizer
    assert isinstance(sgd, torch.optim.SGD)
    assert {(group["momentum"], group["nesterov"]) for group in sgd.param_groups} == {(0.9, True)}
    assert {group["weight_decay"] for group in sgd.param_groups} == {0.0, 0.1}
    plain = step_with(optimizer="sgd", momentum=0.0).optimizer
    assert {(group["momentum"], group["nesterov"]) for group in plain.param_groups} == {(0.0, False)}


def test_muon_moves_the_matrices_inside_of_blocks_and_adamw_the_rest():
    step = step_with(optimizer="muon", lr=1e-3, wd=0.2, beta1=0.8)
    hidden, others = {}, {}
    for names, group in groups_of(step.optimizer, step):
        (hidden if group["hidden"] else others).update(dict.fromkeys(names, group))
    assert all(".layers." in name and name.endswith(".weight") for name in hidden)
    assert {"model.text.layers.0.mlp_in.weight", "model.image.layers.1.attention.q.weight"} <= hidden.keys()
    assert {"model.text.token_embedding.weight", "model.image.projection.weight", "model.logit_scale"} <= others.keys()
    assert {"model.image.patch_embedding.weight", "model.image.layers.0.ln_1.weight"} <= others.keys()
    assert {(group["momentum"], group["adjust_lr_fn"]) for group in hidden.values()} == {(0.95, "match_rms_adamw")}
    assert {group["betas"] for group in others.values()} == {(0.8, 0.98)}
    assert {group["weight_decay"] for group in hidden.values()} == {0.2}
    assert hidden.keys() | others.keys() == dict(step.layout.trainable()).keys()


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_a_step_of_muon_is_an_orthogonal_matrix_of_the_stated_size(adjust):
    """The larger singular values of the update are near 1 (five steps leave the smallest behind), times a factor of the shape."""
    step = step_with(optimizer="muon", lr=1e-3, wd=0.0, muon_adjust_lr=adjust)
    name = "text.layers.0.mlp_in.weight"
    before = step.layout.objective.model.state_dict()[name].clone()
    step([make_batch(6)])
    moved = (before - step.layout.objective.model.state_dict()[name]) / 1e-3
    rows, columns = moved.shape
    factor = 0.2 * max(rows, columns) ** 0.5 if adjust == "match_rms_adamw" else max(1, rows / columns) ** 0.5
    singular = np.linalg.svd(moved.numpy(), compute_uv=False) / factor
    assert singular.max() < 1.3 and np.all(singular[: len(singular) // 2] > 0.65), singular


def test_both_parts_of_muon_equal_each_alone():
    step = step_with(optimizer="muon", lr=1e-3, wd=0.1)
    alone = step_with(optimizer="adamw", lr=1e-3, wd=0.1)
    for seed in range(2):
        step([make_batch(6, seed=seed)])
        if seed == 0:
            alone([make_batch(6, seed=seed)])
            state, expected = (item.layout.full_state() for item in (step, alone))
            same = {name for name in state if torch.equal(state[name], expected[name])}
    hidden = {name for names, group in groups_of(step.optimizer, step) if group["hidden"] for name in names}
    assert same == state.keys() - hidden
    assert all(len(own) == 1 for name, own in step.state()["optimizer"]["state"].items() if name in hidden)


def test_muon_is_refused_where_there_is_no_matrix_for_it():
    objective = create_objective(ClipConfig(), create_model("tiny-test-resnet").lock(text=True))
    named = [(name, item) for name, item in objective.named_parameters() if item.requires_grad]
    with pytest.raises(ConfigError, match="no hidden matrix is trained"):
        create_optimizer(named, objective.model, OptimizerOptions(optimizer="muon"), get_device("cpu"))


REFUSED = [
    (["--optimizer", "sgd", "--beta1", "0.8"], "--beta1 is an option of --optimizer adamw or lamb or muon, not of sgd"),
    (["--momentum", "0.8"], "--momentum is an option of --optimizer muon or sgd, not of adamw"),
    (["--optimizer", "lamb", "--muon-adjust-lr", "original"], "--muon-adjust-lr is an option of --optimizer muon"),
    (["--optimizer", "sgd", "--momentum", "1"], "--momentum 1:"),
    (["--scale-range", "6", "3"], "--scale-range 6.0 3.0: expected two numbers"),
    (["--scale-range", "3"], "--scale-range 3.0: expected two numbers"),
]


@pytest.mark.parametrize(("more", "line"), REFUSED)
def test_what_cannot_be_is_said_in_a_line_before_the_folder_exists(pairs, tmp_path, capsys, more, line):
    assert main(["train", *argv(pairs, tmp_path / "a", "--max-steps", "1", *more)]) != 0
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in last
    assert not (tmp_path / "a").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize("more", [[], ["--accum-freq", "2", "--image-layer-decay", "0.9", "--scale-lr", "1e-4"]])
def test_a_resumed_run_is_the_same_run(pairs, tmp_path, name, more):
    more = [*more, "--optimizer", name, "--lr", RATES[name], "--max-steps", "7"]
    run(pairs, tmp_path / "whole", *more)
    run(pairs, tmp_path / "parts", *more, "--stop-after", "3")
    run(pairs, tmp_path / "parts", *more, "--resume", "latest")
    assert_identical(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_optimizer_lowers_the_loss(name):
    step = step_with(optimizer=name, lr=float(RATES[name]), wd=0.0)
    batch = make_batch(8)
    values = [float(step([batch]).loss) for _ in range(12)]
    assert values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_micro_batches_equal_the_whole_batch(name):
    states = []
    for parts in (1, 3):
        step = step_with(optimizer=name, lr=1e-3, wd=0.1)
        for seed in range(2):
            step(pieces_of(make_batch(6, seed=seed), parts))
        states.append(step.layout.full_state())
    # Adam, and Muon in bfloat16, divide by what may be nearly zero, where rounding shows.
    tolerance = 2e-3 if name == "muon" else 1e-6
    for key, item in states[0].items():
        torch.testing.assert_close(item, states[1][key], rtol=tolerance, atol=tolerance, msg=key)


def test_another_optimizer_cannot_resume(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "4", "--stop-after", "2")
    with pytest.raises(ConfigError, match="trained with --optimizer adamw, whose state lamb cannot use"):
        run(pairs, tmp_path / "a", "--resume", "latest", "--optimizer", "lamb")


def test_the_scale_stays_in_the_range_that_is_asked_for(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "2", "--scale-range", "3", "6")
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    scales = [row["logit_scale"] for row in rows if row["phase"] == "train"]
    # The first step starts from CLIP's 1 / 0.07; after it the scale is at least e^3.
    assert scales[0] == pytest.approx(1 / 0.07, rel=1e-5)
    assert scales[1] == pytest.approx(np.exp(3), rel=1e-5)


def test_a_range_of_a_locked_scale_is_refused():
    objective = create_objective(ClipConfig(), create_model("tiny-test"))
    objective.model.logit_scale.requires_grad_(False)
    with pytest.raises(ConfigError, match="--scale-range is for a logit scale that is locked"):
        create_step(objective, OptimizerOptions(scale_range=(3.0, 6.0)), get_device("cpu"))


def test_the_parts_of_muon_share_state_and_groups():
    optimizer = step_with(optimizer="muon").optimizer
    assert isinstance(optimizer, MuonWithAdamW)
    assert all(part.state is optimizer.state for part in optimizer.parts)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {0.5}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_an_overflow_in_fp16_moves_neither_weights_nor_average(name):
    torch.manual_seed(0)
    objective = create_objective(ClipConfig(), create_model("tiny-test"))
    step = create_step(objective, OptimizerOptions(optimizer=name, ema=0.9), get_device("cpu"), "fp16")
    step([make_batch()])
    before = copy.deepcopy((step.layout.full_state(), step.average.whole()))
    step.scaler.update(2.0**120)  # gradients times this overflow
    step([make_batch(seed=1)])
    for old, new in zip(before, (step.layout.full_state(), step.average.whole()), strict=True):
        assert all(torch.equal(old[key], item) for key, item in new.items())
    assert step.average.updates == 1


def test_state_of_a_fused_part_of_muon_restores_with_its_count_where_it_belongs():
    device = get_device("cpu")
    device.abilities = dataclasses.replace(device.abilities, fused_adamw=True)
    steps = []
    for _ in range(2):
        torch.manual_seed(0)
        objective = create_objective(ClipConfig(), create_model("tiny-test"))
        steps.append(create_step(objective, OptimizerOptions(optimizer="muon"), device))
    first, other = steps
    assert {group.get("fused") for group in first.optimizer.param_groups} == {None, True}
    first([make_batch(seed=1)])
    other.layout.load_full_state(first.layout.full_state())
    other.restore(copy.deepcopy(first.state()))
    first([make_batch(seed=2)]), other([make_batch(seed=2)])
    assert all(torch.equal(item, other.layout.full_state()[key]) for key, item in first.layout.full_state().items())


def states_of_all():
    states = {}
    for name in sorted(ALGORITHMS):
        torch.manual_seed(0)
        objective = create_objective(ClipConfig(), create_model("tiny-test", dtype=torch.float64))
        world = process_group.world_from_environment()
        step = create_step(objective, OptimizerOptions(optimizer=name, lr=1e-3), get_device("cpu"), world=world)
        for seed in range(2):
            step([own_rows(make_batch(8, seed=seed), world)])
        states |= {f"{name} {key}": item.numpy().copy() for key, item in step.layout.full_state().items()}
    return states


@pytest.mark.heavy
def test_two_processes_move_the_weights_as_one_does():
    expected, results = states_of_all(), run_in_processes(2, states_of_all)
    for state in results:
        for key, item in expected.items():
            # Muon's iteration runs in bfloat16, where rounding of the gradients shows.
            np.testing.assert_allclose(state[key], item, rtol=0, atol=2e-3 if "muon" in key else 1e-6, err_msg=key)
    assert all(np.array_equal(item, results[1][key]) for key, item in results[0].items())
