"""SigLIP's towers (siglip, siglip_text): the shortened last block equals the whole, padding is read, sizes are open_clip's."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from diptych.errors import ConfigError
from diptych.models import create_model, model_config
from diptych.models._config import checked


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("tiny-test-siglip").double().eval()


def test_the_shortened_last_block_equals_the_whole(model):
    ids = torch.randint(2, 300, (3, 16))
    whole, pooled = model.text(ids, return_tokens=True), model.text(ids)
    assert (whole.pooled - pooled.pooled).abs().max() < 1e-12
    assert whole.tokens.shape == (3, 16, 32)
    assert whole.mask.all()


def test_a_short_batch_is_padded_to_the_context_and_padding_counts(model):
    ids = torch.randint(2, 300, (2, 9))
    padded = F.pad(ids, (0, 7), value=1)
    assert torch.equal(model.encode_text(ids), model.encode_text(padded))
    assert not torch.allclose(model.encode_text(ids), model.encode_text(F.pad(ids, (0, 7), value=0)))
    with pytest.raises(ConfigError, match="at most 16"):
        model.encode_text(torch.zeros(1, 17, dtype=torch.int64))


def test_the_pool_is_a_plain_attention_of_one_query(model):
    """Against the formula, written out in a few lines."""
    tower, pool = model.image, model.image.pool
    tokens = tower(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), return_tokens=True).tokens
    heads = []
    for head in (slice(0, 16), slice(16, 32)):
        query = pool.q(pool.probe)[head]
        scores = (pool.k(tokens)[..., head] @ query) / 16**0.5
        heads.append((scores.softmax(-1)[..., None] * pool.v(tokens)[..., head]).sum(1))
    mixed = pool.out(torch.cat(heads, -1))
    hidden = F.gelu(pool.mlp_in(pool.norm(mixed)), approximate="tanh")
    assert (mixed + pool.mlp_out(hidden) - pool(tokens)).abs().max() < 1e-12


def test_every_parameter_of_both_towers_learns(model):
    model.train()
    model.checkpoint_activations(True)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    ids = torch.randint(2, 300, (2, 16))
    (model.encode_image(images).square().sum() + model.encode_text(ids).square().sum()).backward()
    lacking = [name for name, item in model.named_parameters() if item.grad is None and "logit" not in name]
    assert not lacking


def test_layer_scale_multiplies_each_branch():
    config = model_config("tiny-test")
    scaled = create_model(dataclasses.replace(config, vision=dataclasses.replace(config.vision, layer_scale=1e-6)))
    block = scaled.image.layers[0]
    assert torch.allclose(block.scale_1, torch.full((32,), 1e-6))
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    tokens = scaled.image(images, return_tokens=True)
    embedded = scaled.image.patch_embedding(scaled.image.normalize(images)).flatten(2).transpose(1, 2)
    positions = scaled.image.positional_embedding[1:]
    # Branches of a millionth leave the residual stream as it came in.
    assert torch.allclose(tokens.tokens, scaled.image.ln_pre(embedded + positions), atol=1e-4)


def test_the_embedding_is_as_wide_as_the_tower():
    config = model_config("tiny-test-siglip")
    with pytest.raises(ConfigError, match="must be the siglip tower's width 32"):
        checked(dataclasses.replace(config, embed_dim=16), "x")
    # SigLIP's 384-pixel SO400M has patches of 14, which leave a strip unseen.
    assert create_model("ViT-SO400M-14-SigLIP-384", device="meta").image.positional_embedding.shape[0] == 27 * 27
