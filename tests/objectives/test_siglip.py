"""SigLIP's loss: the paper's initial values, a free scale; tiles and the ring of processes equal the plain form."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diptych.distributed.gather import rank_offset
from diptych.distributed.process_group import size
from diptych.models import ModelNeeds
from diptych.objectives import ObjectiveOptions, _tiles
from diptych.objectives._sigmoid import sigmoid
from diptych.objectives.siglip import SigLip
from diptych.open_clip.loss import SigLipLoss
from tests.distributed._processes import run_in_processes

from .worlds import EXAMPLES, batch_for, make_objective


def test_the_initial_values_are_the_papers_and_the_scale_is_free():
    assert SigLip.model_needs(ObjectiveOptions()) == ModelNeeds(logit_bias=-10.0, logit_scale=math.log(10.0))
    assert SigLip.scale_range is None


def test_metrics_are_the_scale_the_bias_and_the_accuracy():
    objective = make_objective(EXAMPLES["siglip-0"])
    batch = batch_for(objective)
    terms, _ = objective("terms", batch)
    assert terms.metrics.keys() == {"logit_scale", "logit_bias", "batch_accuracy"}
    assert float(terms.metrics["logit_scale"]) == pytest.approx(10.0)
    assert float(terms.metrics["logit_bias"]) == pytest.approx(-10.0)


def plain(image, text, scale, bias, classes=None):
    """The loss of all pairs with the whole matrix in memory, and the share of images whose own text has the highest logit."""
    own = torch.arange(len(image))
    logits = scale * image @ text.T + bias
    signs = torch.where(own[:, None] == own, 1.0, -1.0)
    if classes is not None:
        logits = logits.masked_fill((classes[:, None] == classes) & (own[:, None] != own), -1e30)
    return F.softplus(-signs * logits).sum() / len(image), (logits.detach().argmax(dim=1) == own).float().mean()


def inputs(rows=7, width=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    image, text = (torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2))
    text = text + image  # so that some win
    return [
        F.normalize(image, dim=1).to(dtype), F.normalize(text, dim=1).to(dtype), torch.tensor([8.0], dtype=dtype),
        torch.tensor([-3.0], dtype=dtype),
    ]  # fmt: skip


def with_gradients(function, items, **options):
    leaves = [item.clone().requires_grad_() for item in items]
    loss, correct = function(*leaves, **options)
    return [loss.detach(), correct.double(), *torch.autograd.grad(3 * loss, leaves)]


CLASSES = torch.tensor([0, 1, 0, 2, 1, 3, 4])


@pytest.mark.parametrize("classes", [None, CLASSES], ids=["distinct", "repeated"])
@pytest.mark.parametrize("tile", [1, 20, 1 << 21])
def test_tiles_equal_the_plain_form(tile, classes, monkeypatch):
    monkeypatch.setattr(_tiles, "TILE", tile)
    actual, expected = (with_gradients(function, inputs(), classes=classes) for function in (sigmoid, plain))
    for own, wanted in zip(actual, expected, strict=True):
        assert torch.allclose(own, wanted, rtol=1e-10, atol=1e-12)
    single = with_gradients(sigmoid, inputs(dtype=torch.float32), classes=classes)
    for own, wanted in zip(single, expected, strict=True):
        assert torch.allclose(own.double(), wanted, rtol=1e-5, atol=1e-5)


def test_the_loss_is_open_clips():
    # tests/open_clip/test_loss.py holds this SigLipLoss to the one of the package itself.
    image, text, scale, bias = inputs(dtype=torch.float32)
    assert torch.allclose(sigmoid(image, text, scale, bias)[0], SigLipLoss()(image, text, scale, bias), atol=1e-6)


def test_the_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(lambda *items: sigmoid(*items)[0], [item.requires_grad_() for item in inputs(3, 4)])


@pytest.mark.parametrize("scale", [0.1, 100.0])
def test_extreme_scales_keep_their_digits(scale):
    items = inputs(32, 16)
    items[2].fill_(scale)
    expected = with_gradients(plain, items)
    actual = with_gradients(sigmoid, [item.float() for item in items])
    for own, wanted in zip(actual, expected, strict=True):
        assert torch.allclose(own.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_equal_texts_let_the_first_win_and_no_gradient_is_made_where_none_is_asked_for():
    items = inputs()
    items[1][:] = items[1][0]
    with torch.no_grad():
        loss, correct = sigmoid(*(item.requires_grad_() for item in items))
    assert not loss.requires_grad
    assert float(correct) == pytest.approx(1 / 7)


RING_CLASSES = torch.tensor([0, 1, 0, 2, 1, 3, 4, 4, 5, 0, 6, 7])


def in_process(classes):
    image, text, scale, bias = inputs(12)
    share = 12 // size()
    rows = slice(rank_offset(share), rank_offset(share) + share)
    options = {"classes": RING_CLASSES if classes else None}
    return [item.numpy() for item in with_gradients(sigmoid, [image[rows], text[rows], scale, bias], **options)]


@pytest.mark.parametrize("processes", [2, 3])
def test_a_ring_of_processes_equals_one(processes):
    for classes in (False, True):
        expected = with_gradients(plain, inputs(12), classes=RING_CLASSES if classes else None)
        results = run_in_processes(processes, in_process, classes)
        for number in (0, 1, 4, 5):  # loss, accuracy, scale and bias are means over processes
            mean = sum(result[number] for result in results) / processes
            np.testing.assert_allclose(mean, expected[number], rtol=1e-6 if number == 1 else 1e-10)  # shares are fp32
        for number in (2, 3):  # features are each process's own; its gradients are averaged over processes later
            whole = np.concatenate([result[number] for result in results]) / processes
            np.testing.assert_allclose(whole, expected[number], rtol=1e-10, atol=1e-12)


def test_autocast_does_not_touch_the_similarities():
    image, text = inputs(6, dtype=torch.float32)[:2]
    plain = sigmoid(image, text, torch.tensor([100.0]), torch.tensor([-10.0]))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sigmoid(image, text, torch.tensor([100.0]), torch.tensor([-10.0]))[0], plain)
