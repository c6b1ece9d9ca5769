"""What a new model's weights are drawn from: the standard deviations of CLIP's, open_clip's and big_vision's code.

Expected values are written from those sources, not from ours: a transformer's q, k and v width^-0.5, what writes into the
residual stream width^-0.5 (2 layers)^-0.5, the MLP's first matrix (2 width)^-0.5, token embeddings 0.02, positions 0.01.
"""

import math

import pytest
import torch

from diptych.models import ModelConfig, create_model, model_config_from_dict

WIDTH, LAYERS, HEADS = 192, 3, 4
TEXT = {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "vocab_size": 4000, "context_length": 77}
VIT = {"family": "vit", "image_size": 64, "patch_size": 8, "width": WIDTH, "layers": LAYERS, "heads": HEADS}
RESNET = {"family": "resnet", "image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "heads": 4}


def build(vision, **more) -> torch.nn.Module:
    values = {"name": "drawn", "embed_dim": WIDTH, "vision": vision, "text": TEXT, **more}
    torch.manual_seed(0)
    config: ModelConfig = model_config_from_dict(values, "test")
    return create_model(config)


def assert_drawn(parameter, std):
    """Normal with mean zero and this deviation, to five standard errors of the sample's own deviation and mean."""
    values = parameter.detach().double().flatten()
    count = len(values)
    assert abs(float(values.std()) / std - 1) < 5 / math.sqrt(2 * count)
    assert abs(float(values.mean())) < 5 * std / math.sqrt(count)
    # Of a normal distribution 4.6 % lie outside of two deviations; of a uniform one nothing does.
    assert abs(float((values.abs() > 2 * std).double().mean()) - 0.0455) < 5 * math.sqrt(0.0455 * 0.9545 / count)


def assert_uniform(parameter, bound):
    values = parameter.detach().double().abs()
    count = values.numel()
    assert bound * (1 - 12 / count) < float(values.max()) <= bound * (1 + 1e-6)
    assert abs(float(values.mean()) - bound / 2) < 5 * bound / math.sqrt(12 * count)


def assert_norms_and_biases_are_neutral(module):
    for part in module.modules():
        if isinstance(part, torch.nn.LayerNorm):
            assert part.weight.eq(1).all()
            assert part.bias.eq(0).all()
        elif isinstance(part, torch.nn.Linear) and part.bias is not None:
            assert part.bias.eq(0).all()


def assert_clips_blocks(blocks):
    branch = WIDTH**-0.5 * (2 * LAYERS) ** -0.5
    assert len(blocks) == LAYERS
    for block in blocks:
        for name in ("q", "k", "v"):
            assert_drawn(getattr(block.attention, name).weight, WIDTH**-0.5)
        assert_drawn(block.attention.out.weight, branch)
        assert_drawn(block.mlp_in.weight, (2 * WIDTH) ** -0.5)
        assert_drawn(block.mlp_out.weight, branch)


def test_the_vision_transformer_is_drawn_as_clips():
    image = build(VIT).image
    assert_drawn(image.patch_embedding.weight, (3 * 8 * 8) ** -0.5)
    assert_drawn(image.class_embedding, WIDTH**-0.5)
    assert_drawn(image.positional_embedding, 0.01)
    assert_drawn(image.projection.weight, WIDTH**-0.5)
    assert_clips_blocks(image.layers)
    assert_norms_and_biases_are_neutral(image)


@pytest.mark.parametrize("family", ["transformer", "siglip_text"])
def test_a_text_transformer_is_drawn_as_clips(family):
    text = build(VIT, text={**TEXT, "family": family, "projection_bias": True}).text
    assert_drawn(text.token_embedding.weight, 0.02)
    assert_drawn(text.positional_embedding, 0.01)
    assert_drawn(text.projection.weight, WIDTH**-0.5)
    assert_clips_blocks(text.layers)
    assert_norms_and_biases_are_neutral(text)


def test_layer_scale_begins_at_its_value():
    for block in build({**VIT, "layer_scale": 0.125}).image.layers:
        assert block.scale_1.eq(0.125).all()
        assert block.scale_2.eq(0.125).all()
        assert block.scale_1.shape == block.scale_2.shape == (WIDTH,)


def test_siglips_image_tower_is_drawn_as_big_visions():
    image = build({**VIT, "family": "siglip"}).image
    assert_drawn(image.patch_embedding.weight, (3 * 8 * 8) ** -0.5)
    assert image.patch_embedding.bias.eq(0).all()
    assert_drawn(image.positional_embedding, WIDTH**-0.5)
    assert_drawn(image.pool.probe, WIDTH**-0.5)
    for block in image.layers:
        assert_uniform(block.attention.q.weight, math.sqrt(6 / (2 * WIDTH)))
        assert_uniform(block.mlp_in.weight, math.sqrt(6 / (5 * WIDTH)))
    for linear in (image.pool.q, image.pool.k, image.pool.v, image.pool.out):
        assert_uniform(linear.weight, math.sqrt(6 / (2 * WIDTH)))
    assert_uniform(image.pool.mlp_out.weight, math.sqrt(6 / (5 * WIDTH)))
    assert_norms_and_biases_are_neutral(image)


def test_a_residual_networks_blocks_begin_as_their_shortcuts():
    image = build(RESNET).image
    for block in image.blocks():
        assert block.expand[1].weight.eq(0).all()
    width = image.pool.q.in_features
    assert_drawn(image.pool.positional_embedding, width**-0.5)
    for linear in (image.pool.q, image.pool.k, image.pool.v, image.pool.out):
        assert_drawn(linear.weight, width**-0.5)
        assert linear.bias.eq(0).all()
    for part in image.modules():
        if isinstance(part, torch.nn.Conv2d):  # torch's own: uniform within 1 / sqrt(fan in)
            assert_uniform(part.weight, part.weight[0].numel() ** -0.5)
        if isinstance(part, torch.nn.BatchNorm2d):
            assert part.bias.eq(0).all()
            assert part.running_mean.eq(0).all()
            assert part.running_var.eq(1).all()


@pytest.mark.parametrize(("scale", "bias"), [(math.log(10), -10.0), (math.log(1 / 0.07), None)])
def test_scale_bias_and_pixel_statistics_begin_at_the_configs(scale, bias):
    given = {} if bias is None else {"logit_bias": bias}
    model = build(VIT, logit_scale=scale, preprocess={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}, **given)
    assert model.logit_scale.tolist() == pytest.approx([scale])
    assert model.logit_bias is None if bias is None else model.logit_bias.tolist() == [bias]
    assert model.image.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert model.image.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
