"""Self-supervised terms equal the textbook's, in value and gradient, at any number of processes; nothing masked costs nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.distributed.gather import rank_offset
from diptych.objectives import _terms
from diptych.objectives._selfsupervised import masked_token_loss, masked_token_sums, nt_xent, simsiam
from diptych.types import IGNORED
from tests.distributed._processes import run_in_processes

from . import view_references as references


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7), st.integers(1, 6), st.floats(0.05, 2), st.integers(0, 99))
def test_nt_xent_is_the_textbooks(count, width, temperature, seed):
    first, second = draw(count, width, seed=seed), draw(count, width, seed=seed + 100)
    loss, _ = nt_xent(first, second, temperature, None)
    assert loss.item() == pytest.approx(
        references.nt_xent(first.numpy(), second.numpy(), temperature), rel=1e-10, abs=1e-10
    )
    loss, _ = nt_xent(first.float(), second.float(), temperature, None)
    assert loss.item() == pytest.approx(
        references.nt_xent(first.numpy(), second.numpy(), temperature), rel=1e-5, abs=1e-5
    )


def test_nt_xent_knows_which_anchors_are_right():
    first, second = torch.eye(4), torch.eye(4)
    loss, right = nt_xent(first, second, 0.1, None)
    assert right == 1
    assert loss.item() == pytest.approx(np.log(1 + 6 * np.exp(-10)), abs=1e-6)
    assert nt_xent(first, second.roll(1, 0), 0.1, None)[1] == 0


def test_gradients_by_finite_differences():
    first, second = draw(4, 3).requires_grad_(), draw(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *views: nt_xent(*views, 0.3, None)[0], (first, second))


def values_and_gradients(first, second):
    first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
    loss, right = nt_xent(first, second, 0.2, None)
    loss.backward()
    return loss.item(), right.item(), first.grad.numpy().copy(), second.grad.numpy().copy()


def test_tiles_equal_the_matrix(monkeypatch):
    views = draw(9, 5), draw(9, 5, seed=1)
    expected = values_and_gradients(*views)
    monkeypatch.setattr(_terms, "MATRIX_LIMIT", 0)
    for actual, wanted in zip(values_and_gradients(*views), expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-12)


def in_process():
    rows = slice(rank_offset(3), rank_offset(3) + 3)
    return values_and_gradients(draw(6, 5)[rows], draw(6, 5, seed=1)[rows])


def test_two_processes_see_each_others_negatives():
    expected = values_and_gradients(draw(6, 5), draw(6, 5, seed=1))
    results = run_in_processes(2, in_process)
    for number in (0, 1):
        assert np.mean([result[number] for result in results]) == pytest.approx(expected[number], rel=1e-12)
    for number in (2, 3):  # parameter gradients are averaged over processes
        gathered = np.concatenate([result[number] for result in results]) / 2
        np.testing.assert_allclose(gathered, expected[number], atol=1e-12)


def test_simsiam_is_minus_the_cosine_and_leaves_targets_alone():
    predictions = draw(5, 4).requires_grad_(), draw(5, 4, seed=1).requires_grad_()
    targets = draw(5, 4, seed=2).requires_grad_(), draw(5, 4, seed=3).requires_grad_()
    loss = simsiam(predictions, targets)
    one, two, other_one, other_two = (item.detach().numpy() for item in (*predictions, *targets))
    expected = -(references._cosine(one, other_two) + references._cosine(two, other_one)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert all(item.grad is None for item in targets)
    assert torch.autograd.gradcheck(lambda *items: simsiam(items, targets), predictions)
    same = tuple(item.detach() for item in targets)
    assert simsiam(same[::-1], same).item() == pytest.approx(-1)


# --- masked tokens ------------------------------------------------------------------------------------------------------------


def masked_world(predicted, dtype=torch.float64):
    """States, targets and a head, where ``predicted`` gives the predicted positions of each text."""
    targets = torch.full((len(predicted), 6), IGNORED)
    for row, positions in enumerate(predicted):
        for position in positions:
            targets[row, position] = (3 * row + position) % 8
    torch.manual_seed(0)
    return draw(len(predicted), 6, 4, dtype=dtype).requires_grad_(), targets, torch.nn.Linear(4, 8).to(dtype)


TEXTS = [[1, 4], [], [2], [0, 1, 2, 3, 4, 5]]


def test_masked_tokens_equal_the_cross_entropy_of_all_logits():
    states, targets, head = masked_world(TEXTS)
    sums, counts = masked_token_sums(states, targets, head)
    assert counts.tolist() == [2, 0, 1, 6] and counts.dtype == torch.int64
    each = torch.nn.functional.cross_entropy(
        head(states).transpose(1, 2), targets, reduction="none", ignore_index=IGNORED
    )
    assert torch.allclose(sums, each.sum(dim=1), atol=1e-12)
    wanted = torch.nn.functional.cross_entropy(head(states).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    loss = masked_token_loss(sums, counts, None)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    actual = torch.autograd.grad(loss, [states, *head.parameters()])
    for own, item in zip(actual, torch.autograd.grad(wanted, [states, *head.parameters()]), strict=True):
        assert torch.allclose(own, item, atol=1e-12)


def test_masked_tokens_gradients_by_finite_differences():
    states, targets, head = masked_world(TEXTS)
    assert torch.autograd.gradcheck(lambda item: masked_token_sums(item, targets, head)[0], states)


@pytest.mark.parametrize("predicted", [[[], []], [[]]])
def test_nothing_predicted_costs_exactly_nothing(predicted):
    states, targets, head = masked_world(predicted)
    loss = masked_token_loss(*masked_token_sums(states, targets, head), None)
    assert loss.item() == 0
    loss.backward()
    for item in (states, *head.parameters()):  # there, and zero: replicas expect a gradient of every parameter
        assert bool((item.grad == 0).all())


def test_half_precision_states_are_summed_in_fp32():
    states, targets, head = masked_world(TEXTS, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        sums, _ = masked_token_sums(states, targets, head)
    assert sums.dtype == torch.float32


def masked_in_process(local=False):
    rows = slice(rank_offset(2), rank_offset(2) + 2)
    states, targets, head = masked_world(TEXTS)
    sums, counts = masked_token_sums(states[rows], targets[rows], head)
    loss = masked_token_loss(sums, counts, None, local=local)
    loss.backward()
    return loss.item(), head.weight.grad.numpy().copy()


def test_two_processes_weigh_every_predicted_token_alike():
    states, targets, head = masked_world(TEXTS)
    sums, counts = masked_token_sums(states, targets, head)
    loss = masked_token_loss(sums, counts, None)
    loss.backward()
    results = run_in_processes(2, masked_in_process)
    assert np.mean([result[0] for result in results]) == pytest.approx(loss.item(), rel=1e-12)
    np.testing.assert_allclose(np.mean([result[1] for result in results], axis=0), head.weight.grad, atol=1e-12)
    averages = [sums[:2].sum().item() / 2, sums[2:].sum().item() / 7]
    actual = [result[0] for result in run_in_processes(2, masked_in_process, True)]
    assert actual == pytest.approx(averages, rel=1e-12)
