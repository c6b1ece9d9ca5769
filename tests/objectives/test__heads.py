"""Batch normalization over all processes equals torch's on the whole batch; projection heads have the layers they name."""

import numpy as np
import pytest
import torch
from torch import nn

from diptych.distributed.gather import rank_offset
from diptych.errors import ConfigError
from diptych.models import create_model
from diptych.objectives._heads import GlobalBatchNorm, LocalBatchNorm, check_norm, projection_head, state_width
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


@pytest.mark.parametrize(("norm", "kind"), [("layer", "LayerNorm"), ("none", None), ("batch", "LocalBatchNorm")])
def test_a_head_may_have_another_norm(norm, kind):
    head = projection_head([7, 6, 5], lambda: None, True, norm=norm, synchronized=False)
    kinds = [type(layer).__name__ for layer in head]
    norms = [kind] if kind else []
    assert kinds == ["Linear", *norms, "ReLU", "Linear", *norms]
    # Only batch normalization takes a bias before it away.
    assert all((layer.bias is None) == (norm == "batch") for layer in head if isinstance(layer, nn.Linear))
    if kind:
        assert head[1].weight is not None and head[-1].weight is None


def local_in_process():
    norm = LocalBatchNorm(WIDTH).double()
    return trained(norm, lambda whole: whole[rank_offset(4) : rank_offset(4) + 4].clone())


def test_the_unsynchronized_norm_is_each_processs_own():
    results = run_in_processes(2, local_in_process)
    for rank, result in enumerate(results):
        own = nn.BatchNorm1d(WIDTH).double()
        expected = trained(own, lambda whole, rank=rank: whole[4 * rank : 4 * rank + 4].clone())
        for actual, wanted in zip(result, expected, strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-12)
    assert not np.allclose(results[0][2], results[1][2])


def test_the_unsynchronized_norm_computes_in_fp32():
    with torch.autocast("cpu", torch.bfloat16):
        assert LocalBatchNorm(WIDTH)(features().bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("norm", "pairs", "fails"), [("batch", 31, True), ("batch", 32, False), ("batch", 0, False), ("layer", 2, False)]
)
def test_too_few_pairs_to_normalize_over_are_an_error(norm, pairs, fails):
    if fails:
        with pytest.raises(ConfigError, match=f"--ssl-norm batch: {pairs} pairs .* expected at least 32"):
            check_norm(norm, pairs)
    else:
        check_norm(norm, pairs)


@pytest.mark.parametrize("preset", ["tiny-test", "tiny-test-resnet", "tiny-test-siglip"])
def test_the_width_of_the_state_is_that_of_the_tower(preset):
    model = create_model(preset)
    size = model.config.vision.image_size
    with torch.no_grad():
        state = model.eval().image(torch.zeros(2, 3, size, size, dtype=torch.uint8)).state
    assert state_width(model.train()) == state.shape[1] and model.training and model.image.training
