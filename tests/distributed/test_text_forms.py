"""Texts in the accelerators' forms, by plans of the batch, under layouts of two processes: equal to one process without any plan.

Attention and projections take their forms of accelerators too, so that joined products meet sharded and split layers.
"""

import numpy as np
import pytest

from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.distributed._full_state import full
from diptych.distributed.mesh import ParallelOptions
from diptych.distributed.parallel import parallelize
from diptych.models import attention_as_elsewhere, text_layout
from diptych.train.optimizer import OptimizerOptions, create_optimizer
from diptych.train.step import Step
from tests.objectives.worlds import EXAMPLES, batch_for, make_objective, own_rows, pieces_of

from ._processes import run_in_processes

LAYOUTS = {
    "replicas": ParallelOptions(),
    "stage3": ParallelOptions(sharding="stage3"),
    "tensor": ParallelOptions(tensor_parallel_degree=2),
}


def planned(batch, text, form):
    """The batch with its texts planned, as a loader process does it."""
    layout = text_layout(text, form, (batch.tokens.shape[2],))
    return batch._replace(plans=tuple(layout.plan(lengths, batch.tokens.shape[2]) for lengths in batch.lengths))


def trained(options, form="", parts=1):
    """Losses of two steps, and the gradients of the last, whole; by plans in a form, or without any."""
    objective = make_objective(EXAMPLES["clip-0"])
    layout = parallelize(objective, get_device("cpu"), process_group.world_from_environment(), options)
    layout.train()
    optimizer = create_optimizer(layout.trainable(), objective.model, OptimizerOptions(lr=1e-3), layout.device)
    step, losses = Step(layout, optimizer, layout.device, "fp32"), []
    for number in range(2):
        pieces = pieces_of(own_rows(batch_for(objective, 8, seed=number), layout.data_world), parts)
        pieces = [planned(piece, objective.model.config.text, form) for piece in pieces] if form else pieces
        losses.append(process_group.all_reduce_mean(step(pieces).loss.double(), layout.group).item())
    return np.array(losses), {name: full(item.grad).numpy().copy() for name, item in layout.trainable()}


def every_form():
    """Results by layout, form and number of micro-batches, each process as an accelerator would compute."""
    with attention_as_elsewhere():
        return {
            (name, form, parts): trained(options, form, parts)
            for name, options in LAYOUTS.items()
            for form, parts in (("buckets", 1), ("varlen", 2))
        }


@pytest.mark.slow
def test_layouts_follow_plans_and_equal_one_process():
    expected = trained(ParallelOptions())
    results = run_in_processes(2, every_form, limit=1200)
    for rank in results:
        assert len(rank) == 6
        for where, (losses, gradients) in rank.items():
            np.testing.assert_allclose(losses, expected[0], rtol=1e-10, err_msg=str(where))
            assert gradients.keys() == expected[1].keys()
            for name, values in expected[1].items():
                np.testing.assert_allclose(gradients[name], values, rtol=0, atol=1e-10, err_msg=f"{where} {name}")
