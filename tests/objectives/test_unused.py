"""Zero gradients for what a pass does not use: which parameters those are, and that nothing else changes."""

from __future__ import annotations

import torch
from torch import nn

from diptych.objectives._unused import unreached, zero_of


def test_parameters_of_a_loss_are_reached_through_any_number_of_functions():
    used, deep, unused = (nn.Parameter(torch.ones(3)) for _ in range(3))
    x = deep
    for _ in range(50):
        x = x * 2 - x
    losses = [(used * 3).sum(), (x.view(3, 1) @ torch.ones(1, 3)).sum()]
    assert unreached(losses, [used, deep]) == []
    [only] = unreached(losses, [used, deep, unused])
    assert only is unused


def test_a_frozen_parameter_is_not_waited_for():
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    used = nn.Parameter(torch.ones(3))
    assert unreached([used.sum()], [used, frozen]) == []


def test_a_loss_that_is_a_number_reaches_nothing():
    unused = nn.Parameter(torch.ones(3))
    assert unreached([torch.zeros(())], [unused])[0] is unused


def test_the_zero_gives_gradients_of_zeros_and_adds_none_to_others():
    unused, used = nn.Parameter(torch.full((2, 3), torch.inf)), nn.Parameter(torch.ones(3, dtype=torch.float64))
    zero = zero_of([unused, used])
    loss = (used * 3).sum() + zero.to(torch.float64)
    loss.backward()
    assert loss.item() == 9
    assert torch.equal(unused.grad, torch.zeros(2, 3))  # also of what is not finite: it is not read
    assert torch.equal(used.grad, torch.full((3,), 3.0, dtype=torch.float64))


def test_a_head_that_gets_no_input_has_a_gradient(monkeypatch):
    from diptych.models import create_model
    from diptych.objectives import create_objective
    from diptych.objectives.clip import ClipConfig
    from diptych.types import Terms

    torch.manual_seed(0)
    objective = create_objective(ClipConfig(), create_model("tiny-test"))
    objective.head = nn.Linear(4, 4)
    monkeypatch.setattr(
        type(objective), "compare_parameters", lambda self: [self.model.logit_scale, *self.head.parameters()]
    )
    scale = objective.model.logit_scale
    terms = objective._touched(Terms({"contrastive": (scale * 2).sum()}, {}))
    terms.losses["contrastive"].backward()
    assert torch.equal(objective.head.weight.grad, torch.zeros(4, 4)) and scale.grad.item() == 2
