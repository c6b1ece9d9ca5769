"""How large a plan says a checkpoint is, against the tensors in one and the file itself."""

import pytest
import torch

from diptych.distributed.mesh import Degrees
from diptych.plan import Request
from diptych.plan.layouts import Planner
from diptych.plan.state import checkpoint_bytes, state_of

from .runs import run


def sizes(value):
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(sizes, items))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_checkpoint_has_the_bytes_of_the_plan(optimizer, pairs, tmp_path):
    run(pairs, tmp_path / "a", "--max-steps", "1", "--optimizer", optimizer)
    (path,) = (tmp_path / "a" / "checkpoints").glob("step_*.pt")
    state = torch.load(path, weights_only=True)
    planner = Planner(Request("tiny-test", 1, 1 << 30, 4, precision="fp32"))
    whole = planner.towers(1).objective
    buffers = sum(item.numel() * item.element_size() for item in whole.buffers())
    planned = checkpoint_bytes(planner.parameters, buffers, optimizer)
    assert sizes(state["weights"]) + sizes(state["step_state"]["optimizer"]) == planned
    assert sizes(state["weights"]) == state_of(planner.parameters, Degrees(), optimizer).parameters + buffers
    assert planned < path.stat().st_size < planned + 200_000  # names, options, random state
