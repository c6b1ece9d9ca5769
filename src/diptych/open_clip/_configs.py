"""The dataclasses of a model's config, with open_clip's fields and defaults, and the towers that they describe.

``norm_kwargs`` and ``act_kwargs`` go to the constructors of norms and activations. What this package has no tower for (timm,
transformers) is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from diptych.open_clip._absent import refuse
from diptych.open_clip._norms import LayerNorm, LayerNormFp32, QuickGELU
from diptych.open_clip._text import TextTransformer
from diptych.open_clip._vision import VisionTransformer
from diptych.open_clip.modified_resnet import ModifiedResNet

BLOCK_OPTIONS = (
    "block_type",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
)


@dataclass
class CLIPVisionCfg:
    """An image tower: four ``layers`` are a ResNet, one number is a ViT; ``timm_*`` describe towers that are not here."""

    layers: tuple[int, int, int, int] | int = 12
    width: int = 768
    head_width: int = 64
    mlp_ratio: float = 4.0
    patch_size: int = 16
    image_size: tuple[int, int] | int = 224
    ls_init_value: float | None = None
    patch_dropout: float = 0.0
    attentional_pool: bool = False
    attn_pooler_queries: int = 256
    attn_pooler_heads: int = 8
    no_ln_pre: bool = False
    pos_embed_type: str = "learnable"
    final_ln_after_pool: bool = False
    pool_type: str = "tok"
    output_tokens: bool = False
    act_kwargs: dict[str, Any] | None = None
    norm_kwargs: dict[str, Any] | None = None
    block_type: str | None = None
    qk_norm: bool = False
    scaled_cosine_attn: bool = False
    scale_heads: bool = False
    scale_attn_inner: bool = False
    scale_attn: bool = False
    scale_fc: bool = False
    timm_model_name: str | None = None
    timm_model_pretrained: bool = False
    timm_pool: str = "avg"
    timm_proj: str = "linear"
    timm_proj_bias: bool = False
    timm_drop: float = 0.0
    timm_drop_path: float | None = None


@dataclass
class CLIPTextCfg:
    """A text tower; ``hf_model_*`` describe towers that are not here."""

    context_length: int = 77
    vocab_size: int = 49408
    hf_tokenizer_name: str | None = None
    tokenizer_mode: str | None = None
    tokenizer_kwargs: dict[str, Any] | None = None
    width: int = 512
    heads: int = 8
    layers: int = 12
    mlp_ratio: float = 4.0
    ls_init_value: float | None = None
    embed_cls: bool = False
    pad_id: int = 0
    eos_id: int = 2
    no_causal_mask: bool = False
    final_ln_after_pool: bool = False
    pool_type: str = "argmax"
    proj_bias: bool = False
    proj_type: str = "linear"
    output_tokens: bool = False
    act_kwargs: dict[str, Any] | None = None
    norm_kwargs: dict[str, Any] | None = None
    block_type: str | None = None
    qk_norm: bool = False
    scaled_cosine_attn: bool = False
    scale_heads: bool = False
    scale_attn_inner: bool = False
    scale_attn: bool = False
    scale_fc: bool = False
    hf_model_name: str | None = None
    hf_model_pretrained: bool = True
    hf_proj_type: str = "mlp"
    hf_pooler_type: str = "mean_pooler"


def _parts(cfg: CLIPVisionCfg | CLIPTextCfg, quick_gelu: bool, cast_dtype: torch.dtype | None) -> dict[str, Any]:
    activation: Callable[..., nn.Module] = QuickGELU if quick_gelu else nn.GELU
    norm: Callable[..., nn.Module] = LayerNormFp32 if cast_dtype in (torch.float16, torch.bfloat16) else LayerNorm
    return {
        "act_layer": activation if cfg.act_kwargs is None else partial(activation, **cfg.act_kwargs),
        "norm_layer": partial(norm, **cfg.norm_kwargs) if cfg.norm_kwargs else norm,
    }


def _chosen(cfg: CLIPVisionCfg | CLIPTextCfg, *names: str) -> dict[str, Any]:
    values = asdict(cfg)
    return {name: values[name] for name in (*names, *BLOCK_OPTIONS)}


def vision_tower(
    embed_dim: int, cfg: CLIPVisionCfg | Mapping[str, Any], quick_gelu: bool, cast_dtype: torch.dtype | None
) -> VisionTransformer | ModifiedResNet:
    """The image tower of a config. Raises ConfigError for timm's, TypeError for fields that no config has."""
    cfg = cfg if isinstance(cfg, CLIPVisionCfg) else CLIPVisionCfg(**cfg)
    if cfg.timm_model_name:
        refuse("TimmModel")
    if isinstance(cfg.layers, list | tuple):
        heads = cfg.width * 32 // cfg.head_width
        return ModifiedResNet(cfg.layers, embed_dim, heads, image_size=cfg.image_size, width=cfg.width)  # type: ignore[arg-type]
    names = [
        "image_size", "patch_size", "width", "layers", "mlp_ratio", "ls_init_value", "patch_dropout", "attentional_pool",
        "attn_pooler_queries", "attn_pooler_heads", "pos_embed_type", "no_ln_pre", "final_ln_after_pool", "pool_type",
        "output_tokens",
    ]  # fmt: skip
    options = _chosen(cfg, *names)
    parts = _parts(cfg, quick_gelu, cast_dtype)
    return VisionTransformer(**options, **parts, heads=cfg.width // cfg.head_width, output_dim=embed_dim)


def text_tower(
    embed_dim: int, cfg: CLIPTextCfg | Mapping[str, Any], quick_gelu: bool, cast_dtype: torch.dtype | None
) -> TextTransformer:
    """The text tower of a config. Raises ConfigError for those of transformers, TypeError for fields that no config has."""
    cfg = cfg if isinstance(cfg, CLIPTextCfg) else CLIPTextCfg(**cfg)
    if cfg.hf_model_name:
        refuse("HFTextEncoder")
    names = [
        "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value", "embed_cls", "no_causal_mask",
        "pad_id", "eos_id", "pool_type", "proj_type", "proj_bias", "output_tokens",
    ]  # fmt: skip
    return TextTransformer(**_chosen(cfg, *names), **_parts(cfg, quick_gelu, cast_dtype), output_dim=embed_dim)
