"""The moving average of the weights: the formula, which steps move it, what is evaluated and saved, resume and processes."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diptych import weights
from diptych.commands import main
from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.distributed.mesh import ParallelOptions
from diptych.distributed.parallel import parallelize
from diptych.errors import ConfigError
from diptych.train.average import WeightAverage, check_average
from diptych.train.optimizer import OptimizerOptions, create_optimizer
from diptych.train.step import Step
from tests.distributed._processes import run_in_processes
from tests.objectives.worlds import EXAMPLES, batch_for, make_objective, own_rows, pieces_of

from .runs import assert_identical, run

EMA = ("--ema", "0.9")
LAYOUTS = {"replicated": ParallelOptions(), "sharded": ParallelOptions(sharding="stage2")}


def make_step(example="clip-0", decay=0.9, warmup=False, layout="replicated", dtype=torch.float64):
    device, world = get_device("cpu"), process_group.world_from_environment()
    laid_out = parallelize(make_objective(EXAMPLES[example], dtype), device, world, LAYOUTS[layout])
    laid_out.train()
    optimizer = create_optimizer(laid_out.trainable(), laid_out.objective.model, OptimizerOptions(lr=1e-2), device)
    step = Step(laid_out, optimizer, device, "fp32")
    step.average = WeightAverage(laid_out, decay, warmup)
    return step


def take(step, seeds, parts=1):
    for seed in seeds:
        batch = own_rows(batch_for(step.layout.objective, 16, seed=seed), step.layout.world)
        yield step(pieces_of(batch, parts))


def arrays(state):
    return {name: item.detach().numpy().copy() for name, item in state.items()}


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("example", ["clip-0", "distill-0", "superclip-0"])
def test_every_update_is_the_formulas(example, warmup):
    step = make_step(example, warmup=warmup)
    expected = arrays(dict(step.layout.trainable()))
    for count, _ in enumerate(take(step, range(4))):
        decay = min(0.9, (1 + count) / (10 + count)) if warmup else 0.9
        for name, item in step.layout.trainable():
            expected[name] = decay * expected[name] + (1 - decay) * item.detach().numpy()
    averages = step.average.whole()
    for name, item in expected.items():
        np.testing.assert_allclose(averages[name].numpy(), item, rtol=1e-12, atol=1e-14, err_msg=name)


def test_statistics_of_batch_normalization_are_averaged_and_counts_are_not():
    example = next(name for name, item in EXAMPLES.items() if item.preset == "tiny-test-resnet")
    step = make_step(example)
    names = [name for name in step.layout.objective.state_dict() if name.endswith("running_var")]
    expected = arrays({name: step.layout.objective.state_dict()[name] for name in names})
    for _ in take(step, range(3)):
        for name in names:
            expected[name] = 0.9 * expected[name] + 0.1 * step.layout.objective.state_dict()[name].numpy()
    averages = step.average.whole()
    for name in names:
        np.testing.assert_allclose(averages[name].numpy(), expected[name], rtol=1e-12)
    assert names and not [name for name in averages if name.endswith("num_batches_tracked")]


def test_a_step_that_was_not_taken_leaves_the_average():
    step = make_step()
    list(take(step, [0]))
    before = arrays(step.average.whole())
    with torch.no_grad():
        step.layout.objective.model.logit_scale.fill_(float("nan"))
    (result,) = take(step, [1])
    assert not result.finite and step.average.updates == 1
    assert all(np.array_equal(item, before[name]) for name, item in step.average.whole().items())


def test_applying_brings_the_averages_and_gives_every_weight_back_to_the_bit():
    step = make_step(dtype=torch.float32)
    list(take(step, range(3)))
    live, averages = arrays(step.layout.full_state()), arrays(step.average.whole())
    with pytest.raises(KeyError), step.average.applied():
        for name, item in dict(step.layout.trainable()).items():
            assert np.array_equal(item.detach().numpy(), averages[name])
        raise KeyError
    assert all(np.array_equal(item, live[name]) for name, item in arrays(step.layout.full_state()).items())
    assert all(np.array_equal(item, averages[name]) for name, item in step.average.whole().items())


def test_a_locked_tower_has_no_average_and_stays():
    objective = make_objective(EXAMPLES["clip-0"])
    objective.model.lock(image=True)
    average = WeightAverage(parallelize(objective, get_device("cpu"), process_group.world_from_environment()), 0.9)
    assert average.whole() and not [name for name in average.whole() if name.startswith("model.image")]


def test_micro_batches_equal_the_whole_batch():
    whole, parts = make_step(), make_step()
    list(take(whole, range(2))), list(take(parts, range(2), 4))
    for name, item in whole.average.whole().items():
        torch.testing.assert_close(parts.average.whole()[name], item, rtol=0, atol=1e-6)


@pytest.mark.heavy
def test_a_run_with_an_average_leaves_both_and_trains_as_without(pairs, tmp_path):
    run(pairs, tmp_path / "plain", "--max-steps", "4", "--val-data", pairs)
    run(pairs, tmp_path / "a", "--max-steps", "4", "--val-data", pairs, *EMA)
    assert_identical(tmp_path / "plain", tmp_path / "a")
    live, average = (load_file(tmp_path / "a" / name) for name in ("model.safetensors", "model_ema.safetensors"))
    assert live.keys() == average.keys() and not torch.equal(live["logit_scale"], average["logit_scale"])
    results = {entry["name"]: entry for entry in json.loads((tmp_path / "a" / "results.json").read_text())}
    assert list(results) == ["val", "val-ema"] and "-ema" not in (tmp_path / "a" / "gallery.json").read_text()
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    measured = {row["name"]: row for row in rows if row["phase"] == "eval" and row["step"] == 4}
    assert measured["val"]["loss"] != measured["val-ema"]["loss"]
    assert main(["report", str(tmp_path / "a")]) == 0
    page = (tmp_path / "a" / "report.html").read_text()
    assert "<h3>val-ema<" in page and "<h3>val<" in page


def test_the_saved_average_is_a_model_of_the_averages_in_the_checkpoint(pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "5", "--val-data", pairs, *EMA)
    written = weights.load(tmp_path / "a" / "model_ema.safetensors").state_dict()
    saved = torch.load(tmp_path / "a/checkpoints/step_00000005.pt", weights_only=True)["step_state"]["average"]
    assert saved["updates"] == 5
    assert all(torch.equal(item, written[name.removeprefix("model.")]) for name, item in saved["averages"].items())


@pytest.mark.heavy
@pytest.mark.parametrize("more", [[], ["--ema-warmup", "--accum-freq", "2"], ["--model", "tiny-test-resnet"]])
def test_a_resumed_average_is_the_same_bit_by_bit(pairs, tmp_path, more):
    more = [*EMA, *more, "--max-steps", "7", "--val-data", pairs]
    run(pairs, tmp_path / "whole", *more)
    run(pairs, tmp_path / "parts", *more, "--stop-after", "3")
    run(pairs, tmp_path / "parts", *more, "--resume", "latest")
    whole, parts = (load_file(tmp_path / name / "model_ema.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(item, parts[name]) for name, item in whole.items())


def test_an_average_may_begin_or_end_where_a_run_resumes_and_that_is_said(pairs, tmp_path, capsys):
    run(pairs, tmp_path / "a", "--max-steps", "6", "--stop-after", "2")
    run(pairs, tmp_path / "a", "--resume", "latest", "--stop-after", "2", *EMA)
    assert "it begins at the weights of the checkpoint" in capsys.readouterr().err
    checkpoint = torch.load(tmp_path / "a/checkpoints/step_00000004.pt", weights_only=True)
    assert checkpoint["step_state"]["average"]["updates"] == 2
    run(pairs, tmp_path / "a", "--resume", "latest", "--ema", "0")
    assert "left behind" in capsys.readouterr().err


def averaged(kind):
    step = make_step("siglip-1", layout=kind)
    list(take(step, range(3)))
    state = step.average.state()
    with step.average.applied():
        applied = arrays(step.layout.full_state())
    again = make_step("siglip-1", layout=kind)
    again.restore({**step.state(), "average": state})
    return arrays(state["averages"]), applied, arrays(again.average.whole())


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_processes_average_as_one(kind):
    (expected, _, _), results = averaged("replicated"), run_in_processes(2, averaged, kind)
    for averages, applied, restored in results:
        for name, item in expected.items():
            np.testing.assert_allclose(averages[name], item, rtol=0, atol=1e-6, err_msg=name)
            assert np.array_equal(averages[name], applied[name]) and np.array_equal(averages[name], restored[name])


def statistics():
    step = make_step(next(name for name, item in EXAMPLES.items() if item.preset == "tiny-test-resnet"))
    list(take(step, range(2)))
    with step.average.applied():
        state = arrays(step.layout.full_state())
    return {name: item for name, item in state.items() if "running" in name}


def test_processes_evaluate_the_same_statistics():
    one, other = run_in_processes(2, statistics)
    assert one and all(np.array_equal(item, other[name]) for name, item in one.items())


@pytest.mark.parametrize(("decay", "warmup", "line"), [(1.0, False, "--ema 1:"), (0.0, True, "--ema-warmup is for")])
def test_options_that_do_nothing_are_refused(decay, warmup, line):
    with pytest.raises(ConfigError, match=line):
        check_average(decay, warmup)


def test_an_average_of_other_weights_is_refused():
    step, locked = make_step(), make_step("siglip-1")
    with pytest.raises(ConfigError, match="an average of other weights"):
        step.average.restore(locked.average.state())
