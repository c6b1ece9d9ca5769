"""The loss in tiles equals the loss of the whole matrix: values, gradients, and at scales where exponentials vanish."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from diptych.objectives import _terms, _tiles
from diptych.objectives._terms import Features, contrastive
from diptych.objectives._tiles import tiled_cross_entropy


def features(count, width=16, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=dtype), dim=-1).requires_grad_()


def both(monkeypatch, limit, rows, columns, scale, offset=0):
    monkeypatch.setattr(_terms, "MATRIX_LIMIT", limit)
    loss, correct = contrastive(rows, columns, scale, offset)
    leaves = list(dict.fromkeys([*rows, *columns, scale]))
    return loss.detach(), correct, torch.autograd.grad(3 * loss, leaves)


@pytest.mark.parametrize("tile", [1, 100, 1 << 20])
@pytest.mark.parametrize("stored", [0, 1 << 26])
@pytest.mark.parametrize("scale", [0.5, 14.0, 100.0])
def test_tiles_equal_the_whole_matrix(monkeypatch, tile, stored, scale):
    monkeypatch.setattr(_tiles, "TILE", tile)
    monkeypatch.setattr(_tiles, "STORED", stored)
    one = Features(features(37), features(37, seed=1))
    factor = torch.tensor([scale], dtype=torch.float64, requires_grad=True)
    expected, found = (both(monkeypatch, limit, one, one, factor) for limit in (1 << 30, 0))
    assert torch.allclose(found[0], expected[0], rtol=1e-12) and torch.equal(found[1].double(), expected[1].double())
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found[2], expected[2], strict=True))


@pytest.mark.parametrize("stored", [0, 1 << 26])
@pytest.mark.parametrize("offset", [0, 20, 25])
def test_local_rows_against_all_columns(monkeypatch, offset, stored):
    monkeypatch.setattr(_tiles, "STORED", stored)
    monkeypatch.setattr(_tiles, "TILE", 90)
    rows, columns = Features(features(12), features(12, seed=1)), Features(features(37, seed=2), features(37, seed=3))
    factor = torch.tensor([30.0], dtype=torch.float64, requires_grad=True)
    expected, found = (both(monkeypatch, limit, rows, columns, factor, offset) for limit in (1 << 30, 0))
    assert torch.allclose(found[0], expected[0], rtol=1e-12) and torch.equal(found[1].double(), expected[1].double())
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found[2], expected[2], strict=True))


def test_fp32_at_scale_100_is_as_near_to_float64_as_the_plain_form(monkeypatch):
    one = [
        features(300, 64, seed=seed) for seed in (0, 1)
    ]  # unrelated: exp(-100) would be all that is left of a column
    exact = both(monkeypatch, 1 << 30, Features(*one), Features(*one), torch.tensor([100.0]).double().requires_grad_())
    half = Features(*(item.detach().float().requires_grad_() for item in one))
    errors = []
    for limit in (1 << 30, 0):
        found = both(monkeypatch, limit, half, half, torch.tensor([100.0], requires_grad=True))
        errors.append(max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found[2], exact[2], strict=True)))
    assert errors[1] < max(3 * errors[0], 1e-6)


def test_gradients_by_finite_differences():
    rows, columns = features(5, 4), features(7, 4, seed=1)
    scale = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: tiled_cross_entropy(*a, offset=1)[0], (rows, columns, scale))
    square = features(5, 4, seed=2)
    assert torch.autograd.gradcheck(lambda *a: tiled_cross_entropy(*a, both=True)[0], (rows, square, scale))


def test_a_collapsed_model_is_at_chance():
    same = F.normalize(torch.ones(50, 4), dim=-1)
    assert int(tiled_cross_entropy(same, same, torch.ones(1), both=True)[1]) == 1
