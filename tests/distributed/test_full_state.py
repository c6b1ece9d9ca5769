"""State of optimizers by name: what a resumed run gives back to each parameter, and where it lies."""

import pytest
import torch

from diptych.distributed import _full_state


@pytest.mark.parametrize("on_device", [False, True])
def test_the_count_of_steps_is_where_the_implementation_reads_it(on_device):
    parameter = torch.zeros(3, device="meta")
    step = torch.tensor(4.0)
    placed = _full_state.restored("step", step, parameter, on_device)
    assert placed.device.type == ("meta" if on_device else "cpu") and placed is not step
    assert _full_state.restored("exp_avg", torch.ones(3), parameter, on_device).device.type == "meta"


def test_other_values_stay_as_they_are():
    assert _full_state.restored("kind", "adam", torch.zeros(1), False) == "adam"


def test_a_restored_moment_is_a_copy():
    moment, parameter = torch.ones(3), torch.zeros(3)
    restored = _full_state.restored("exp_avg", moment, parameter, False)
    restored.add_(1)
    assert torch.equal(moment, torch.ones(3))


def test_the_norm_of_no_gradients_is_zero():
    assert float(_full_state.total_norm([])) == 0.0
    assert float(_full_state.total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])) == pytest.approx(5.0)


def test_a_digest_knows_names_types_shapes_and_bytes():
    state = {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    same = _full_state.digest(dict(reversed(state.items())))
    assert _full_state.digest(state) == same and len(same) == 40
    others = [
        {"a": torch.arange(4.0), "c": state["b"]},
        {"a": torch.arange(4.0).double(), "b": state["b"]},
        {"a": torch.arange(4.0).view(2, 2), "b": state["b"]},
        {"a": torch.arange(4.0) + 1e-6, "b": state["b"]},
    ]
    assert len({same, *map(_full_state.digest, others)}) == 5
