"""Small models in every form that open_clip's configs have, and inputs for them; no tests."""

import copy

import torch

TEXT = {"context_length": 20, "vocab_size": 500, "width": 48, "heads": 4, "layers": 3}
VISION = {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "head_width": 16}


def config(vision=(), text=(), base=VISION, **top):
    return {"embed_dim": 64, "vision_cfg": {**base, **dict(vision)}, "text_cfg": {**TEXT, **dict(text)}, **top}


CONFIGS = {
    "plain": config(),
    "quick": config(quick_gelu=True),
    "layer_scale": config({"ls_init_value": 0.1}, {"ls_init_value": 0.1}),
    "clipa": config(
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {"no_causal_mask": True, "pool_type": "last"},
    ),
    "mean": config({"pool_type": "avg"}, {"pool_type": "first"}),
    "attention_pool": config({"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 6}),
    "custom": config(
        {"qk_norm": True, "scale_attn": True, "scale_attn_inner": True},
        {"scaled_cosine_attn": False, "scale_heads": True, "scale_fc": True},
    ),
    "sincos": config({"pos_embed_type": "sin_cos_2d"}),
    "bias": config((), {"norm_kwargs": {"eps": 1e-6}}, init_logit_bias=-10.0),
    "vector_scale": config(nonscalar_logit_scale=True, init_logit_scale=1.5),
    "resnet": config(base=RESNET),
    "eos": config((), {"pool_type": "eos", "eos_id": 499}),
    "no_projection": config((), {"proj_type": "none", "width": 64}),
    "projection_bias": config((), {"proj_bias": True}),
}
CLASSES = ("CLIP", "CustomTextCLIP")


def made(kind, values, seed=0):
    torch.manual_seed(seed)
    return kind(**copy.deepcopy(values))


def images(count=3, side=64):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def texts(lengths=(5, 20, 9), context=20, end=499):
    ids = torch.zeros(len(lengths), context, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, end, (length,), generator=torch.Generator().manual_seed(row))
        ids[row, length - 1] = end
    return ids
