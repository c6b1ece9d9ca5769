"""SigLIP's loss: the paper's initial values, a free scale, and rows of a part of the batch."""

import math

import pytest
import torch
import torch.nn.functional as F

from diptych.models import ModelNeeds
from diptych.objectives import ObjectiveOptions
from diptych.objectives._terms import sigmoid
from diptych.objectives.siglip import SigLip

from .worlds import EXAMPLES, batch_for, make_objective


def features(rows, seed):
    return F.normalize(torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


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


def test_rows_of_a_part_of_the_batch_know_their_texts():
    image, text = features(6, 0), features(6, 1)
    scale, bias = torch.tensor([5.0], dtype=torch.float64), torch.tensor([-2.0], dtype=torch.float64)
    whole, correct = sigmoid(image, text, scale, bias)
    parts = [sigmoid(image[start : start + 3], text, scale, bias, start) for start in (0, 3)]
    assert float(whole) == pytest.approx(float(sum(loss for loss, _ in parts)) / 2)
    assert float(correct) == pytest.approx(float(sum(share for _, share in parts)) / 2)
    best = (image @ text.T).argmax(dim=1)
    assert float(correct) == pytest.approx(float((best == torch.arange(6)).double().mean()))


def test_autocast_does_not_touch_the_similarities():
    image, text = features(6, 0).float(), features(6, 1).float()
    plain = sigmoid(image, text, torch.tensor([100.0]), torch.tensor([-10.0]))[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sigmoid(image, text, torch.tensor([100.0]), torch.tensor([-10.0]))[0], plain)
