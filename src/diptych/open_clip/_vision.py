"""CLIP's vision transformer under open_clip's class, attribute and parameter names.

Takes normalized floating-point images, as open_clip does; uint8 images are the library's own (``diptych.models``), and refused
here. Tokens, intermediates, hooks and traces take the full form; plain calls take the fast one (``_fast``), which is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.models import FullAttention, traced
from diptych.open_clip._attention import AttentionalPooler
from diptych.open_clip._fast import each_token_alone, intact, run_stack
from diptych.open_clip._locks import lock_groups
from diptych.open_clip._norms import LayerNorm, PatchDropout
from diptych.open_clip._stacks import Transformer
from diptych.open_clip.pos_embed import get_2d_sincos_pos_embed
from diptych.open_clip.utils import to_2tuple


def _check_images(x: Tensor, patch: tuple[int, int], size: tuple[int, int]) -> None:
    """Raise ConfigError for what is no batch of normalized images, and where a border would be left out without a word."""
    if not isinstance(x, Tensor) or x.ndim != 4:
        given = f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else f"{type(x).__name__}"
        raise ConfigError(f"{given} was given; expected normalized images [B, 3, H, W].")
    sides = tuple(x.shape[-2:])
    if not traced(x) and sides != size and any(side % step for side, step in zip(sides, patch, strict=True)):
        raise ConfigError(
            f"images of {sides[0]} x {sides[1]} were given, which patches of {patch[0]} x {patch[1]} do not cover; expected"
            f" {size[0]} x {size[1]}, as `preprocess` gives them."
        )
    if not x.is_floating_point():
        raise ConfigError(
            f"images of {x.dtype} were given; open_clip's models take normalized floating-point images, as `preprocess` gives"
            " them. (`diptych.create_model_and_transforms` has models that take uint8.)"
        )


class VisionTransformer(nn.Module):
    """Patches -> blocks -> the class token (``pool_type`` "tok"), the mean of the patches ("avg") or all tokens ("none")."""

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float,
        ls_init_value: float | None = None,
        attentional_pool: bool | str = False,
        attn_pooler_queries: int = 256,
        attn_pooler_heads: int = 8,
        output_dim: int = 512,
        patch_dropout: float = 0.0,
        no_ln_pre: bool = False,
        pos_embed_type: str = "learnable",
        pool_type: str = "tok",
        final_ln_after_pool: bool = False,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] = LayerNorm,
        output_tokens: bool = False,
        block_type: str | None = None,
        qk_norm: bool = False,
        scaled_cosine_attn: bool = False,
        scale_heads: bool = False,
        scale_attn_inner: bool = False,
        scale_attn: bool = False,
        scale_fc: bool = False,
    ) -> None:
        super().__init__()
        if pool_type not in ("tok", "avg", "none"):
            raise ValueError(f"pool_type {pool_type!r} was given; expected 'tok', 'avg' or 'none'.")
        self.output_tokens, self.output_dim = output_tokens, output_dim
        self.image_size, self.patch_size = to_2tuple(image_size), to_2tuple(patch_size)
        self.grid_size = tuple(side // patch for side, patch in zip(self.image_size, self.patch_size, strict=True))
        self.final_ln_after_pool = final_ln_after_pool
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = self._positions(pos_embed_type, width)
        self.patch_dropout = PatchDropout(patch_dropout) if patch_dropout > 0 else nn.Identity()
        self.ln_pre = nn.Identity() if no_ln_pre else norm_layer(width)
        self.transformer = Transformer(
            width, layers, heads, mlp_ratio, ls_init_value=ls_init_value, act_layer=act_layer, norm_layer=norm_layer,
            block_type=block_type, qk_norm=qk_norm, scaled_cosine_attn=scaled_cosine_attn, scale_heads=scale_heads,
            scale_attn_inner=scale_attn_inner, scale_attn=scale_attn, scale_fc=scale_fc,
        )  # fmt: skip
        self._make_pool(attentional_pool, pool_type, (attn_pooler_queries, attn_pooler_heads))
        pool_dim = width if self.attn_pool is None else output_dim
        self.ln_post = norm_layer(pool_dim)
        self.proj: nn.Parameter | None = nn.Parameter(scale * torch.randn(pool_dim, output_dim))
        self.init_parameters()

    def _positions(self, kind: str, width: int) -> nn.Parameter:
        rows = self.grid_size[0] * self.grid_size[1] + 1
        if kind == "learnable":
            return nn.Parameter(width**-0.5 * torch.randn(rows, width))
        if kind != "sin_cos_2d" or self.grid_size[0] != self.grid_size[1]:
            raise ValueError(
                f"pos_embed_type {kind!r} was given; expected 'learnable', or 'sin_cos_2d' for square images."
            )
        table = get_2d_sincos_pos_embed(width, self.grid_size[0], cls_token=True)
        return nn.Parameter(torch.from_numpy(table).float(), requires_grad=False)

    def _make_pool(self, attentional: bool | str, pool_type: str, sizes: tuple[int, int]) -> None:
        queries, heads = sizes
        self.pool_type, self.attn_pool, self.attn_pool_contrastive = pool_type, None, None
        if not attentional:
            return
        width = self.transformer.width
        self.attn_pool = AttentionalPooler(self.output_dim, width, n_head=heads, n_queries=queries)
        self.attn_pool_type = ""
        if isinstance(attentional, str):
            if attentional not in ("parallel", "cascade"):
                raise ValueError(f"attentional_pool {attentional!r} was given; expected true, 'parallel' or 'cascade'.")
            self.attn_pool_type, self.pool_type = attentional, "none"
            # Of "cascade" the second pooler reads the first one's output, which open_clip gives the same width.
            self.attn_pool_contrastive = AttentionalPooler(self.output_dim, width, n_head=heads, n_queries=1)

    def init_parameters(self) -> None:
        """Nothing: open_clip leaves torch's initial values, drawn in the constructor."""

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freeze all but the last ``unlocked_groups``: embeddings, each block (the last with ``ln_post``), ``proj``."""
        blocks = list(self.transformer.resblocks)
        embeddings: list[Any] = [self.conv1, self.class_embedding, self.positional_embedding, self.ln_pre]
        lock_groups(
            self, [embeddings, *([b] for b in blocks[:-1]), [*blocks[-1:], self.ln_post], [self.proj]], unlocked_groups
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations of blocks in the backward pass."""
        self.transformer.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimizers exclude beside vectors."""
        return {"positional_embedding", "class_embedding"}

    def _global_pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.pool_type == "none":
            return x, x
        tokens = x[:, 1:]
        return (tokens.mean(dim=1) if self.pool_type == "avg" else x[:, 0]), tokens

    def _embeds(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        classes = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([classes, x], dim=1) + self.positional_embedding.to(x.dtype)
        return self.ln_pre(self.patch_dropout(x))  # type: ignore[no-any-return]

    def _pool(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.attn_pool is not None and self.attn_pool_contrastive is not None:
            x = self.ln_post(x)
            tokens = self.attn_pool(x)
            return self.attn_pool_contrastive(x if self.attn_pool_type == "parallel" else tokens), tokens
        if self.attn_pool is not None:
            return self._global_pool(self.ln_post(self.attn_pool(x)))
        if self.final_ln_after_pool:
            pooled, tokens = self._global_pool(x)
            return self.ln_post(pooled), tokens
        return self._global_pool(self.ln_post(x))

    def _pools_one_token(self) -> bool:
        plain = self.attn_pool is None and each_token_alone(self.ln_post)
        return plain and self.pool_type == "tok" and not self.output_tokens

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        stop_early: bool = False,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        output_fmt: str = "NCHW",
        output_extra_tokens: bool = False,
    ) -> dict[str, Tensor | list[Tensor]]:
        """``image_intermediates`` of the chosen blocks, as maps [B, width, H, W] or ("NLC") tokens [B, N, width].

        ``output_extra_tokens`` adds the class tokens as ``image_intermediates_prefix``; unless ``intermediates_only``,
        ``image_features`` [B, D] are given too.
        """
        _check_images(x, to_2tuple(self.patch_size), to_2tuple(self.image_size))
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt {output_fmt!r} was given; expected 'NCHW' or 'NLC'.")
        grid = [side // patch for side, patch in zip(x.shape[-2:], self.patch_size, strict=True)]
        x, states = self.transformer.forward_intermediates(self._embeds(x), indices=indices, stop_early=stop_early)
        if normalize_intermediates:
            states = [self.ln_post(state) for state in states]
        maps = [state[:, 1:] for state in states]
        if output_fmt == "NCHW":
            maps = [tokens.transpose(1, 2).unflatten(2, grid).contiguous() for tokens in maps]
        output: dict[str, Tensor | list[Tensor]] = {"image_intermediates": maps}
        if output_extra_tokens:
            output["image_intermediates_prefix"] = [state[:, :1] for state in states]
        if not intermediates_only:
            output["image_features"] = self._projected(self._pool(x)[0])
        return output

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what comes after the last of ``indices``: blocks, and with the flags the last norm and the projection."""
        chosen = self.transformer.prune_intermediate_layers(indices)
        if prune_norm:
            self.ln_post = nn.Identity()
        if prune_head:
            self.proj = None
        return chosen

    def _projected(self, pooled: Tensor) -> Tensor:
        return pooled if self.proj is None else pooled @ self.proj

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalized images [B, 3, H, W] -> features [B, D]; with ``output_tokens`` also the tokens [B, N, width]."""
        _check_images(x, to_2tuple(self.patch_size), to_2tuple(self.image_size))
        if self._pools_one_token() and intact(self.transformer, self.ln_post, inputs=x):
            pooled = run_stack(self.transformer, self._embeds(x), FullAttention(), only_pooled=True)
            return self._projected(self.ln_post(pooled))
        pooled, tokens = self._pool(self.transformer(self._embeds(x)))
        pooled = self._projected(pooled)
        return (pooled, tokens) if self.output_tokens else pooled
