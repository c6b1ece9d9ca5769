"""The contract, over every registered objective: finite, differentiable, and the same on two processes as on one."""

import pytest
import torch

from diptych.distributed import process_group
from diptych.distributed.wrap import wrap
from diptych.models import create_model
from diptych.objectives import OBJECTIVES, create_objective, tensors_of
from diptych.train.step import total
from tests.distributed._processes import run_in_processes

from .worlds import make_batch, rows_of

NAMES = OBJECTIVES.names()


def make(name, **options):
    torch.manual_seed(0)
    model = create_model("tiny-test", dtype=torch.float64)
    return create_objective(OBJECTIVES.get(name).Config(objective=name, **options), model)


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_finite_and_every_parameter_gets_a_gradient(name):
    objective = make(name)
    terms = objective(make_batch(wants=objective.wants))
    assert terms.losses
    assert all(bool(torch.isfinite(part).all()) for part in terms.losses.values())
    total(terms).backward()
    assert not [key for key, item in objective.named_parameters() if item.grad is None]


@pytest.mark.parametrize("name", NAMES)
def test_encoding_looks_at_one_pair_at_a_time(name):
    objective = make(name).eval()
    batch = make_batch(wants=objective.wants)
    whole = tensors_of(objective.encode(batch))
    pieces = [tensors_of(objective.encode(rows_of(batch, start, start + 2))) for start in (0, 2, 4)]
    for one, parts in zip(whole, zip(*pieces, strict=True), strict=True):
        assert torch.allclose(one, torch.cat(parts), atol=1e-12)


def gradients(name, options):
    """Loss, and the gradient of every parameter averaged over processes, of this process's share of one batch."""
    from diptych.devices import get_device

    here = process_group.world_from_environment()
    objective = make(name, **options)
    wrapped = wrap(objective, get_device("cpu"), here)
    batch = make_batch(8, objective.wants)
    share = len(batch.keys) // here.size
    loss = total(wrapped(rows_of(batch, here.rank * share, (here.rank + 1) * share)))
    loss.backward()
    # Lists, not tensors: a queue would carry tensors as file handles that outlive the process.
    grads = {key: item.grad.flatten().tolist() for key, item in objective.named_parameters()}
    return float(process_group.all_reduce_mean(loss.detach())), grads


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"local_loss": False}])
def test_two_processes_equal_one(name, options):
    loss, expected = gradients(name, options)
    for other, found in run_in_processes(2, gradients, name, options):
        assert other == pytest.approx(loss, abs=1e-12)
        for key, values in expected.items():
            assert torch.allclose(torch.tensor(found[key]), torch.tensor(values), atol=1e-7), key


def test_without_crossing_gradients_the_direction_is_kept_but_not_the_size():
    # open_clip's default: each process's own rows alone carry gradient, so the mean over two processes is half of it.
    options = {"local_loss": False, "gather_with_grad": False}
    _, expected = gradients("clip", {})
    _, found = run_in_processes(2, gradients, "clip", options)[0]
    for key, values in expected.items():
        if key.startswith("model.image") or key.startswith("model.text"):
            assert torch.allclose(2 * torch.tensor(found[key]), torch.tensor(values), atol=1e-6), key
