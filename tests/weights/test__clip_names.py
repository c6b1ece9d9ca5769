"""The rules against reference implementations that know only the original names: plain torch, no code of Diptych's towers.

Round trips cannot notice a rule that is wrong both ways, such as two norms exchanged; these do.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diptych.models import model_config
from diptych.models.siglip import SiglipConfig
from diptych.weights._clip_names import NamingScheme, clip_rules
from diptych.weights._rename import to_theirs
from diptych.weights.openclip import siglip_rules

from .test_formats import random_model, resnet, small


def quickgelu(x):
    return x * torch.sigmoid(1.702 * x)


def residual(state, prefix, heads, mask):
    """OpenAI's ResidualAttentionBlock as torch's own pre-norm encoder layer."""
    width, hidden = state[f"{prefix}.ln_1.weight"].shape[0], state[f"{prefix}.mlp.c_fc.bias"].shape[0]
    layer = nn.TransformerEncoderLayer(
        width, heads, hidden, dropout=0.0, activation=quickgelu, batch_first=True, norm_first=True
    )
    names = {
        "self_attn.in_proj_weight": "attn.in_proj_weight", "self_attn.in_proj_bias": "attn.in_proj_bias",
        "self_attn.out_proj.weight": "attn.out_proj.weight", "self_attn.out_proj.bias": "attn.out_proj.bias",
        "norm1.weight": "ln_1.weight", "norm1.bias": "ln_1.bias", "norm2.weight": "ln_2.weight", "norm2.bias": "ln_2.bias",
        "linear1.weight": "mlp.c_fc.weight", "linear1.bias": "mlp.c_fc.bias",
        "linear2.weight": "mlp.c_proj.weight", "linear2.bias": "mlp.c_proj.bias",
    }  # fmt: skip
    layer.load_state_dict({torchs: state[f"{prefix}.{theirs}"] for torchs, theirs in names.items()})
    return lambda x: layer(x, src_mask=mask)


def norm(state, name, x, eps=1e-5):
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def vit(state, images, heads, layers):
    x = F.conv2d(images, state["visual.conv1.weight"], stride=16).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + state["visual.positional_embedding"]
    x = norm(state, "visual.ln_pre", x)
    for layer in range(layers):
        x = residual(state, f"visual.transformer.resblocks.{layer}", heads, None)(x)
    return norm(state, "visual.ln_post", x[:, 0]) @ state["visual.proj"]


def text(state, ids, heads, layers, prefix=""):
    mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
    x = state[f"{prefix}token_embedding.weight"][ids] + state[f"{prefix}positional_embedding"]
    for layer in range(layers):
        x = residual(state, f"{prefix}transformer.resblocks.{layer}", heads, mask)(x)
    x = norm(state, f"{prefix}ln_final", x)
    return x[torch.arange(len(ids)), ids.argmax(1)] @ state[f"{prefix}text_projection"]


def conv(state, convolution, batch_norm, x, **how):
    x = F.conv2d(x, state[f"{convolution}.weight"], **how)
    values = [state[f"{batch_norm}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *values)


def modified_resnet(state, images, blocks, heads):
    x = images
    for index, stride in ((1, 2), (2, 1), (3, 1)):
        x = F.relu(conv(state, f"visual.conv{index}", f"visual.bn{index}", x, stride=stride, padding=1))
    x = F.avg_pool2d(x, 2)
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            name, pool = f"visual.layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.relu(conv(state, f"{name}.conv1", f"{name}.bn1", x))
            y = F.avg_pool2d(F.relu(conv(state, f"{name}.conv2", f"{name}.bn2", y, padding=1)), pool)
            y = conv(state, f"{name}.conv3", f"{name}.bn3", y)
            if f"{name}.downsample.0.weight" in state:
                x = conv(state, f"{name}.downsample.0", f"{name}.downsample.1", F.avg_pool2d(x, pool))
            x = F.relu(x + y)
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x]) + state["visual.attnpool.positional_embedding"][:, None]
    q, k, v, out = (
        (state[f"visual.attnpool.{letter}_proj.weight"], state[f"visual.attnpool.{letter}_proj.bias"])
        for letter in "qkvc"
    )
    pooled, _ = F.multi_head_attention_forward(
        x[:1], x, x, x.shape[-1], heads, None, torch.cat([q[1], k[1], v[1]]), None, None, False, 0.0, *out,
        training=False, use_separate_proj_weight=True, q_proj_weight=q[0], k_proj_weight=k[0], v_proj_weight=v[0],
    )  # fmt: skip
    return pooled[0]


def equal(ours, expected):
    assert expected.std() > 0.01
    assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def ids_for(config):
    ids = torch.randint(1, 300, (3, config.text.context_length), generator=torch.Generator().manual_seed(2))
    for row, end in enumerate((5, 40, 76)):
        ids[row, end], ids[row, end + 1 :] = config.text.vocab_size - 1, 0
    return ids


@pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning")
@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "text."])
def test_a_vit_and_its_text_tower_under_openais_names(prefix):
    config = small()
    model = random_model(config)
    state = to_theirs(clip_rules(config, NamingScheme(text=prefix)), model.state_dict())
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    equal(model.encode_image(images), vit(state, images, config.vision.heads, config.vision.layers))
    ids = ids_for(config)
    equal(model.encode_text(ids), text(state, ids, config.text.heads, config.text.layers, prefix))
    assert state["logit_scale"].shape == () and "logit_bias" not in state


@torch.no_grad()
def test_a_modified_resnet_under_openais_names():
    config = resnet()
    model = random_model(config)
    for name, buffer in model.image.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(torch.rand(buffer.shape, generator=torch.Generator().manual_seed(len(name))) + 0.5)
    state = to_theirs(clip_rules(config, NamingScheme()), model.state_dict())
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    equal(model.encode_image(images), modified_resnet(state, images, config.vision.layers, config.vision.heads))
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert len(counters) == sum(".bn" in name or "downsample.1." in name for name in state if "running_var" in name)


def timm_pool(state, pool, x, heads):
    batch, width = x.shape[0], x.shape[-1]
    split = (batch, -1, heads, width // heads)
    q = linear(state, f"{pool}.q", state[f"{pool}.latent"].expand(batch, -1, -1)).reshape(split).transpose(1, 2)
    k, v = (part.reshape(split).transpose(1, 2) for part in linear(state, f"{pool}.kv", x).chunk(2, -1))
    x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, 1, width)
    x = linear(state, f"{pool}.proj", x)
    y = F.gelu(linear(state, f"{pool}.mlp.fc1", norm(state, f"{pool}.norm", x, 1e-6)))
    return (x + linear(state, f"{pool}.mlp.fc2", y))[:, 0]


@torch.no_grad()
def test_siglips_image_tower_under_timms_names():
    vision = SiglipConfig(image_size=32, patch_size=8, width=64, layers=2, heads=4)
    config = dataclasses.replace(model_config("tiny-test-siglip"), vision=vision, embed_dim=64, activation="gelu")
    model = random_model(config)
    state = to_theirs(siglip_rules(config), model.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    trunk = "visual.trunk"
    patches = state[f"{trunk}.patch_embed.proj.weight"], state[f"{trunk}.patch_embed.proj.bias"]
    x = F.conv2d(images, *patches, stride=8).flatten(2).transpose(1, 2) + state[f"{trunk}.pos_embed"]
    for layer in range(2):
        name = f"{trunk}.blocks.{layer}"
        split = (2, -1, 4, 16)
        qkv = linear(state, f"{name}.attn.qkv", norm(state, f"{name}.norm1", x, 1e-6)).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(*(part.reshape(split).transpose(1, 2) for part in qkv))
        x = x + linear(state, f"{name}.attn.proj", mixed.transpose(1, 2).flatten(2))
        hidden = F.gelu(linear(state, f"{name}.mlp.fc1", norm(state, f"{name}.norm2", x, 1e-6)))
        x = x + linear(state, f"{name}.mlp.fc2", hidden)
    expected = timm_pool(state, f"{trunk}.attn_pool", norm(state, f"{trunk}.norm", x, 1e-6), 4)
    equal(model.encode_image(images), expected)


def test_separate_projections_are_transposed_but_not_embeddings():
    model = random_model(small())
    scheme = NamingScheme(stacked=False, linear_transposed=True, scale_shape=1)
    state = to_theirs(clip_rules(model.config, scheme), model.state_dict())
    block = model.image.layers[1]
    for letter in "qkv":
        ours = getattr(block.attention, letter)
        name = f"visual.transformer.resblocks.1.attn.{letter}_proj"
        assert torch.equal(state[f"{name}.weight"], ours.weight.T) and torch.equal(state[f"{name}.bias"], ours.bias)
    assert torch.equal(state["visual.transformer.resblocks.1.mlp.c_fc.weight"], block.mlp_in.weight.T)
    assert torch.equal(state["visual.transformer.resblocks.1.mlp.c_proj.weight"], block.mlp_out.weight.T)
    assert torch.equal(state["visual.transformer.resblocks.1.attn.out_proj.weight"], block.attention.out.weight.T)
    assert torch.equal(state["token_embedding.weight"], model.text.token_embedding.weight)
    assert state["logit_scale"].shape == (1,)


def test_layer_scales_and_a_bias_have_names():
    vision = dataclasses.replace(small().vision, layer_scale=0.5)
    model = random_model(small(vision=vision, logit_bias=-2.0))
    state = to_theirs(clip_rules(model.config, NamingScheme()), model.state_dict())
    for layer, block in enumerate(model.image.layers):
        assert torch.equal(state[f"visual.transformer.resblocks.{layer}.ls_1.gamma"], block.scale_1)
        assert torch.equal(state[f"visual.transformer.resblocks.{layer}.ls_2.gamma"], block.scale_2)
    assert not any(".ls_" in name for name in state if not name.startswith("visual."))
    assert state["logit_bias"].shape == () and state["logit_bias"].item() == -2.0
