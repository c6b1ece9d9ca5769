"""A checkpoint of any layout is resumed under any other: ten steps in all equal ten of one process, in float64 to 1e-10.

Files and folders, with moving averages, clipping and shards of unequal size (17 positions over two and four processes); an
objective with a head, and one whose state is a buffer of its own.
"""

import numpy as np
import pytest

from diptych.devices import get_device
from diptych.distributed import checkpoint, process_group
from diptych.distributed.mesh import ParallelOptions
from diptych.distributed.saving import CheckpointWriter, SaveOptions
from diptych.train.optimizer import OptimizerOptions
from diptych.train.step import create_step
from tests.objectives.worlds import EXAMPLES, batch_for, make_objective, own_rows, pieces_of

from ._processes import run_in_processes
from .test_equal_layouts import TWO as LAYOUTS

ONE = {"one": ParallelOptions()}
TWO = {name: layout for name, layout in LAYOUTS.items() if name != "stage1"}
FOUR = {
    "stage3 of 4": ParallelOptions(sharding="stage3"),
    "replicas of shards": ParallelOptions(sharding="stage2", sharding_parallel_degree=2),
    "tensor, stage2": ParallelOptions(sharding="stage2", tensor_parallel_degree=2),
    "tensor, replicated": ParallelOptions(tensor_parallel_degree=2),
}
EXAMPLE = "superclip-0"
KINDS = ("file", "folder")


def make_step(options, example=EXAMPLE):
    device, world = get_device("cpu"), process_group.world_from_environment()
    chosen = OptimizerOptions(lr=1e-3, grad_clip_norm=0.5, ema=0.9)
    return create_step(make_objective(EXAMPLES[example]), chosen, device, "fp32", world, parallel=options)


def take(step, numbers):
    for number in numbers:
        batch = own_rows(batch_for(step.layout.objective, 8, seed=number), step.layout.data_world)
        step(pieces_of(batch, 2))


def state_of(step, whole):
    layout = step.layout
    weights = layout.full_state() if whole else layout.own_state()
    return {"step": 5, "weights": weights, "step_state": step.state(whole)}


def arrays(step):
    """Weights, moments and averages after the steps, whole."""
    state = step.state()
    moments = {
        f"{name} {key}": value
        for name, values in state["optimizer"]["state"].items()
        for key, value in values.items()
        if key != "step"
    }
    tensors = {
        **step.layout.full_state(),
        **moments,
        **{f"{k} average": v for k, v in state["average"]["averages"].items()},
    }
    return {name: item.detach().numpy().copy() for name, item in tensors.items()}


def save_five(folder, layouts, kinds, example=EXAMPLE):
    """Five steps under each layout, saved in each kind."""
    for name, options in layouts.items():
        step = make_step(options, example)
        take(step, range(5))
        for kind in kinds:
            writer = CheckpointWriter(folder / f"{name}, {kind}", step.layout.world, SaveOptions(kind))
            writer.save(5, state_of(step, writer.whole))


def resumed(folder, options, example=EXAMPLE):
    """Five more steps from a folder of checkpoints."""
    step = make_step(options, example)
    _, state = checkpoint.newest(folder)
    assert state["step"] == 5
    step.layout.load_full_state(state["weights"])
    step.restore(state["step_state"])
    take(step, range(5, 10))
    return arrays(step)


def every_pair(folder, layouts, kinds, others=()):
    """Saves of each layout, and what each layout makes of each save, those of ``others`` too."""
    save_five(folder, layouts, kinds)
    sources = [*others, *(f"{name}, {kind}" for name in layouts for kind in kinds)]
    return {
        (source, name): resumed(folder / source, options) for source in sources for name, options in layouts.items()
    }


def ten_steps(example=EXAMPLE):
    step = make_step(ParallelOptions(), example)
    take(step, range(10))
    return arrays(step)


def assert_equal(actual, expected, where):
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=0, atol=1e-10, err_msg=f"{where}: {name}")


def check(folder, processes, layouts, kinds=KINDS, others=()):
    """Every pair of layouts among these processes; then one process from each of their saves. How many pairs it was."""
    results = run_in_processes(processes, every_pair, folder, layouts, kinds, others, limit=1500)
    expected = ten_steps()
    for rank in results:
        for where, actual in rank.items():
            assert_equal(actual, expected, where)
    for name in layouts:
        for kind in kinds:
            assert_equal(resumed(folder / f"{name}, {kind}", ParallelOptions()), expected, (name, kind, "one"))
    return len(results[0]) + len(layouts) * len(kinds)


@pytest.mark.slow
def test_shards_and_one_process_resume_each_other(tmp_path):
    save_five(tmp_path, ONE, KINDS)
    assert check(tmp_path, 2, {"stage3": TWO["stage3"]}, ["folder"], [f"one, {kind}" for kind in KINDS]) == 4


@pytest.mark.slow
def test_every_pair_of_layouts_of_one_and_two_processes(tmp_path):
    save_five(tmp_path, ONE, KINDS)
    assert check(tmp_path, 2, TWO, KINDS, [f"one, {kind}" for kind in KINDS]) == 48


@pytest.mark.slow
def test_every_pair_of_layouts_of_four_processes_and_others(tmp_path):
    save_five(tmp_path, ONE, ["folder"])
    run_in_processes(2, save_five, tmp_path, {"tensor": TWO["tensor"], "stage2": TWO["stage2"]}, ["folder"], limit=600)
    others = ["one, folder", "tensor, folder", "stage2, folder"]
    assert check(tmp_path, 4, FOUR, ["folder"], others) == 32


def test_the_state_of_an_objective_is_in_a_folder(tmp_path):
    save_five(tmp_path, ONE, ["folder"], "fastclip-0")
    actual = resumed(tmp_path / "one, folder", ParallelOptions(), "fastclip-0")
    assert_equal(actual, ten_steps("fastclip-0"), "fastclip")
    assert any("log_u" in name for name in actual)
