"""Initial values: every kind of parameter has the standard deviation that CLIP's authors (and big_vision's) gave it.

The formulas are open_clip's ``init_parameters`` (transformer.py, modified_resnet.py, model.py) and, for SigLIP, big_vision's:
written out here once more, from the architecture's sizes alone.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from diptych.models import create_model, model_config

WIDTH, LAYERS, HIDDEN = 96, 3, 384
TEXT_WIDTH, TEXT_LAYERS, TEXT_HIDDEN = 64, 5, 256


def built(preset, embed_dim=48, layers=LAYERS, **vision):
    config = model_config(preset)
    vision = {"width": WIDTH, "heads": 2, "layers": layers, "image_size": 64} | vision
    text = {"width": TEXT_WIDTH, "heads": 2, "layers": TEXT_LAYERS, "vocab_size": 3000}
    torch.manual_seed(0)
    return create_model(
        replace(config, embed_dim=embed_dim, vision=replace(config.vision, **vision), text=replace(config.text, **text))
    )


def assert_drawn(parameter, std):
    """Mean 0 and this deviation, within five standard errors."""
    values = parameter.detach().double().flatten()
    assert values.numel() > 40
    assert abs(float(values.std()) / std - 1) < 5 / math.sqrt(2 * values.numel()), (float(values.std()), std)
    assert abs(float(values.mean())) < 5 * std / math.sqrt(values.numel())


def assert_blocks(blocks, width, hidden):
    residual = width**-0.5 * (2 * len(blocks)) ** -0.5
    for block in blocks:
        for linear in (block.attention.q, block.attention.k, block.attention.v):
            assert_drawn(linear.weight, width**-0.5)
        assert_drawn(block.attention.out.weight, residual)
        assert_drawn(block.mlp_in.weight, (2 * width) ** -0.5)
        assert_drawn(block.mlp_out.weight, residual)
        assert block.mlp_in.out_features == hidden


def assert_plain(module):
    """Biases are 0, norms begin as nothing but a norm."""
    for name, parameter in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        if name.endswith(".bias"):
            assert not parameter.any(), name
        elif isinstance(owner, torch.nn.LayerNorm):
            assert bool((parameter == 1).all()), name


@pytest.mark.parametrize("preset", ["tiny-test", "tiny-test-clipa"])
def test_vits_parameters(preset):
    tower = built(preset, patch_size=8).image
    assert_drawn(tower.patch_embedding.weight, (3 * 8 * 8) ** -0.5)
    assert_drawn(tower.class_embedding, WIDTH**-0.5)
    assert_drawn(tower.positional_embedding, 0.01)
    assert_blocks(tower.layers, WIDTH, HIDDEN)
    assert_drawn(tower.projection.weight, WIDTH**-0.5)
    assert_plain(tower)


@pytest.mark.parametrize("preset", ["tiny-test", "tiny-test-siglip", "tiny-test-clipa"])
def test_both_text_towers_parameters(preset):
    tower = built(preset, embed_dim=WIDTH).text
    assert_drawn(tower.token_embedding.weight, 0.02)
    assert_drawn(tower.positional_embedding, 0.01)
    assert_blocks(tower.layers, TEXT_WIDTH, TEXT_HIDDEN)
    assert_drawn(tower.projection.weight, TEXT_WIDTH**-0.5)
    assert_plain(tower)


def test_residual_branches_shrink_with_the_depth():
    shallow, deep = (built("tiny-test", layers=layers, patch_size=8).image.layers for layers in (1, 4))
    ratio = float((shallow[0].mlp_out.weight.std() / deep[0].mlp_out.weight.std()).detach())
    assert 1.95 < ratio < 2.05


def test_layer_scale_is_constant():
    block = built("tiny-test", layer_scale=0.1, patch_size=8).image.layers[1]
    for scale in (block.scale_1, block.scale_2):
        assert torch.equal(scale, torch.full((WIDTH,), 0.1))


def test_siglips_parameters():
    tower = built("tiny-test-siglip", embed_dim=WIDTH, patch_size=8).image
    assert_drawn(tower.patch_embedding.weight, (3 * 8 * 8) ** -0.5)
    assert_drawn(tower.positional_embedding, WIDTH**-0.5)
    assert_drawn(tower.pool.probe, WIDTH**-0.5)
    for linear in tower.linears().values():
        xavier = math.sqrt(2 / (linear.in_features + linear.out_features))
        assert_drawn(linear.weight, xavier)
        assert float(linear.weight.detach().abs().max()) <= xavier * math.sqrt(3)  # uniform, not normal
    assert_plain(tower)


def test_resnets_parameters():
    tower = built("tiny-test-resnet", width=16, heads=4, layers=(1, 2, 1, 1)).image
    width = 16 * 32
    assert_drawn(tower.pool.positional_embedding, width**-0.5)
    for linear in (tower.pool.q, tower.pool.k, tower.pool.v, tower.pool.out):
        assert_drawn(linear.weight, width**-0.5)
        assert not linear.bias.any()
    for block in tower.blocks():
        assert not block.expand[1].weight.any()  # each block begins as its shortcut
        assert bool((block.reduce[1].weight == 1).all())
        convolution = block.spatial[0].weight
        # torch's own: uniform with a bound of 1 / sqrt(fan in).
        assert_drawn(convolution, (3 * convolution[0].numel()) ** -0.5)


@pytest.mark.parametrize(
    ("preset", "scale", "bias"), [("tiny-test", 1 / 0.07, None), ("tiny-test-siglip", 10.0, -10.0)]
)
def test_the_scale_begins_where_its_authors_began(preset, scale, bias):
    model = create_model(preset)
    assert model.logit_scale.shape == (1,)
    assert math.isclose(model.logit_scale.item(), math.log(scale), rel_tol=1e-6)
    assert (None if model.logit_bias is None else model.logit_bias.tolist()) == (None if bias is None else [bias])
