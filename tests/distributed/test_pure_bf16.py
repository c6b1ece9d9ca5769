"""Towers stored in bf16 under every layout: as near to one process as bf16 sums let it be, and resumed under any other.

Copies of sharded and split weights are sharded and split; gradients of several processes are averaged as they are stored.
"""

import numpy as np
import pytest
import torch

from diptych.devices import get_device
from diptych.distributed import checkpoint, process_group
from diptych.distributed._full_state import local
from diptych.distributed.mesh import ParallelOptions
from diptych.distributed.saving import CheckpointWriter, SaveOptions
from diptych.train.optimizer import OptimizerOptions
from diptych.train.step import create_step
from tests.objectives.worlds import EXAMPLES, make_objective

from ._processes import run_in_processes
from .test_equal_layouts import FOUR, TWO
from .test_resharding import arrays, state_of, take

EXAMPLE = "superclip-0"
ONE = ParallelOptions()


def make_step(options, precision="pure_bf16"):
    device, world = get_device("cpu"), process_group.world_from_environment()
    chosen = OptimizerOptions(lr=1e-3, grad_clip_norm=0.5, ema=0.9)
    return create_step(
        make_objective(EXAMPLES[EXAMPLE], torch.float32), chosen, device, precision, world, parallel=options
    )


def check_stored(step):
    """Every copy lies as its weight does, and the weight is its rounding, part by part."""
    named = dict(step.layout.objective.named_parameters())
    for name, copy in step.layout.masters.items():
        weight = named[name]
        assert copy.dtype == torch.float32 and weight.dtype == torch.bfloat16, name
        assert getattr(copy, "placements", None) == getattr(weight, "placements", None), name
        assert torch.equal(local(weight), local(copy).to(torch.bfloat16)), name
        moment = step.optimizer.state[copy]["exp_avg"]
        assert moment.dtype == torch.float32 and local(moment).shape == local(weight).shape, name


def trained(layouts, folder):
    """By layout: what ten steps give, of which the last five are the same again from a file and from a folder, bit for bit."""
    results = {}
    for name, options in layouts.items():
        step = make_step(options)
        take(step, range(5))
        check_stored(step)
        for kind in ("file", "folder"):
            writer = CheckpointWriter(folder / f"{name}, {kind}", step.layout.world, SaveOptions(kind))
            writer.save(5, state_of(step, writer.whole))
        take(step, range(5, 10))
        expected = arrays(step)
        for kind in ("file", "folder"):
            resumed = from_checkpoint(folder / f"{name}, {kind}", options)
            for key, values in expected.items():
                np.testing.assert_array_equal(resumed[key], values, err_msg=f"{name}, {kind}: {key}")
        results[name] = expected
    return results


def from_checkpoint(folder, options):
    """Five more steps from a folder of checkpoints."""
    step = make_step(options)
    _, state = checkpoint.newest(folder)
    step.layout.load_full_state(state["weights"])
    step.restore(state["step_state"])
    check_stored(step)
    take(step, range(5, 10))
    return arrays(step)


def every_other(layouts, folder):
    """By layout: five more steps from the first one's folder."""
    first = next(iter(layouts))
    return {name: from_checkpoint(folder / f"{first}, folder", options) for name, options in layouts.items()}


def one_process(precision="pure_bf16", steps=10):
    step = make_step(ONE, precision)
    take(step, range(steps))
    return arrays(step)


def distance(first, second, averages=False):
    """Of the trained weights of the model, or of their averages."""
    suffix = " average" if averages else ""
    names = [name + suffix for name in dict(make_step(ONE).layout.trainable())]
    return sum(float(np.square(first[name].astype(float) - second[name]).sum()) for name in names) ** 0.5


def check(processes, layouts, folder):
    """Every layout is as far from fp32 as one process is, and nearer to that one than that."""
    exact, alone, start = one_process("fp32"), one_process(), one_process("fp32", steps=1)
    way = distance(exact, start)
    rounding = distance(alone, exact) / way
    for rank in run_in_processes(processes, trained, layouts, folder, limit=1200):
        for name, own in rank.items():
            gaps = [distance(own, other) / way for other in (exact, alone)]
            print(
                f"GAPS {name}: {gaps[0]:.4f} from fp32, {gaps[1]:.4f} from one process, which is {rounding:.4f} from fp32"
            )
            assert gaps[0] < 3 * rounding and gaps[1] < 3 * rounding, name
            assert distance(own, exact, averages=True) / way < 3 * rounding, name
    return way, rounding


@pytest.mark.heavy
def test_two_processes_are_as_near_to_fp32_as_one(tmp_path):
    check(2, {name: TWO[name] for name in ("stage3", "tensor")}, tmp_path)


@pytest.mark.slow
def test_two_processes_under_every_layout_and_resumed_under_every_other(tmp_path):
    way, rounding = check(2, TWO, tmp_path)
    exact = one_process("fp32")
    for rank in run_in_processes(2, every_other, TWO, tmp_path, limit=1200):
        for name, own in rank.items():
            assert distance(own, exact) / way < 3 * rounding, name


@pytest.mark.slow
def test_four_processes_under_every_layout(tmp_path):
    check(4, FOUR, tmp_path)
