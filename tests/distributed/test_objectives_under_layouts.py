"""Every objective of the family under every layout equals one process: loss, gradients, and weights after five AdamW steps.

In float64 to 1e-10, and one step in fp32 as near as sums of other order allow. Every configuration that an objective offers is
tried on two processes; the first of each on four, with replicas of shards and with split layers in shards. Batch normalization
of ResNets is held still, since a tower's statistics are of a process's own images by definition (``test_batch_norm`` has the
synchronized form). Which layouts there are, and every combination of clipping and locks for three objectives:
``test_equal_layouts``.
"""

import warnings

import numpy as np
import pytest
import torch

from diptych.distributed.mesh import ParallelOptions
from diptych.objectives import OBJECTIVES
from tests.objectives.worlds import EXAMPLES

from ._processes import run_in_processes
from .test_equal_layouts import FOUR, TWO, assert_equal, trained

EVERYTHING = {"parts": 2, "clip": 0.05, "checkpointing": True}
LOCKED = {"lock": True, "checkpointing": True}
FIRST = tuple(f"{name}-0" for name in OBJECTIVES.names())
FOUR_OF_OBJECTIVES = {name: FOUR[name] for name in ("replicas of shards", "tensor, stage2")}


def every_example(layouts, examples, cases, dtype="float64"):
    """Results by layout, example and number of the case; a warning of torch's is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {
            (layout, example, number): trained(example, options, **case, dtype=getattr(torch, dtype))
            for layout, options in layouts.items()
            for example in examples
            for number, case in enumerate(cases)
        }


def check(processes, layouts, examples, cases):
    results = run_in_processes(processes, every_example, layouts, examples, cases, limit=2400)
    for example in examples:
        for number, case in enumerate(cases):
            expected = trained(example, ParallelOptions(), **{**case, "parts": 1, "checkpointing": False})
            for layout in layouts:
                for rank in results:
                    assert_equal(rank[layout, example, number], expected, (layout, example, case))


@pytest.mark.heavy
def test_an_objective_of_all_parts_equals_one_process():
    check(2, {name: TWO[name] for name in ("stage3", "tensor")}, ("everything-0",), (EVERYTHING,))


@pytest.mark.slow
def test_two_processes_equal_one_with_every_objective():
    check(2, TWO, tuple(EXAMPLES), (EVERYTHING,))


@pytest.mark.slow
def test_two_processes_equal_one_with_every_objective_and_a_frozen_tower():
    check(2, TWO, FIRST, (LOCKED,))


@pytest.mark.slow
def test_four_processes_equal_one_with_every_objective():
    check(4, FOUR_OF_OBJECTIVES, FIRST, (EVERYTHING,))


@pytest.mark.slow
def test_in_fp32_layouts_differ_by_rounding_only():
    """Loss to 1e-6, each gradient to 1e-5 of its norm. That of a key's bias is zero but for rounding, and is not compared."""
    one_step = {"parts": 2, "steps": 1}
    results = run_in_processes(2, every_example, TWO, FIRST, (one_step,), "float32", limit=2400)
    for example in FIRST:
        losses, gradients, _ = trained(example, ParallelOptions(), steps=1, dtype=torch.float32)
        for layout in TWO:
            own_losses, own_gradients, _ = results[0][layout, example, 0]
            assert np.abs(own_losses - losses).max() <= 1e-6 * max(1.0, np.abs(losses).max()), (layout, example)
            for name, values in gradients.items():
                if not name.endswith("k.bias"):
                    difference = np.linalg.norm(own_gradients[name] - values) / max(np.linalg.norm(values), 1e-6)
                    assert difference <= 1e-5, (layout, example, name, difference)
