"""Batch normalization over all processes equals torch's on the whole batch; projection heads have the layers they name."""

import numpy as np
import pytest
import torch
from torch import nn

from diptych.distributed.gather import rank_offset
from diptych.objectives._heads import GlobalBatchNorm, projection_head
from tests.distributed._processes import run_in_processes

WIDTH = 5


def features(seed=0, rows=8):
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3 + 1


def trained(norm, split=lambda whole: whole):
    """Output, input gradient and statistics after two batches."""
    for seed in (0, 1):
        inputs = split(features(seed)).requires_grad_()
        output = norm(inputs)
        (output.pow(3).sum()).backward()
    return output.detach().numpy(), inputs.grad.numpy(), norm.running_mean.numpy(), norm.running_var.numpy()


def both(affine):
    own, theirs = GlobalBatchNorm(WIDTH, lambda: None, affine).double(), nn.BatchNorm1d(WIDTH, affine=affine).double()
    if affine:
        with torch.no_grad():
            for norm in (own, theirs):
                norm.weight.copy_(torch.arange(1.0, 6.0))
                norm.bias.copy_(torch.arange(5.0))
    return own, theirs


@pytest.mark.parametrize("affine", [True, False])
def test_the_norm_equals_torchs_in_one_process(affine):
    own, theirs = both(affine)
    for actual, expected in zip(trained(own), trained(theirs), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-9)
    assert int(own.num_batches_tracked) == 2
    own.eval(), theirs.eval()
    np.testing.assert_allclose(own(features(3)).detach(), theirs(features(3)).detach(), atol=1e-12)
    assert int(own.num_batches_tracked) == 2
    if affine:
        np.testing.assert_allclose(own.weight.grad, theirs.weight.grad, atol=1e-9)
        np.testing.assert_allclose(own.bias.grad, theirs.bias.grad, atol=1e-9)


def in_process():
    own, _ = both(True)
    return trained(own, lambda whole: whole[rank_offset(4) : rank_offset(4) + 4].clone())


def test_two_processes_normalize_as_one():
    expected = trained(both(True)[1])
    results = run_in_processes(2, in_process)
    for number in (0, 1):  # each process has its own rows
        whole = np.concatenate([result[number] for result in results])
        np.testing.assert_allclose(whole, expected[number], atol=1e-9)
    for result in results:
        np.testing.assert_allclose(result[2], expected[2], atol=1e-12)
        np.testing.assert_allclose(result[3], expected[3], atol=1e-12)


def test_half_precision_is_normalized_in_fp32():
    own, _ = both(True)
    with torch.autocast("cpu", torch.bfloat16):
        assert own.float()(features().bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("last_norm", [False, True])
def test_a_head_has_norm_and_relu_between_its_layers(last_norm):
    head = projection_head([7, 6, 5, 4], lambda: None, last_norm)
    kinds = [type(layer).__name__ for layer in head]
    block = ["Linear", "GlobalBatchNorm", "ReLU"]
    assert kinds == [*block, *block, "Linear", *(["GlobalBatchNorm"] if last_norm else [])]
    linears = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == [(7, 6), (6, 5), (5, 4)]
    # A norm after a layer takes its bias away; only a last layer without one has a bias.
    assert [layer.bias is not None for layer in linears] == [False, False, not last_norm]
    assert all(head[position].weight is not None for position in (1, 4))
    if last_norm:
        assert head[-1].weight is None and head[-1].num_features == 4
