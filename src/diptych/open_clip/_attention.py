"""open_clip's attention modules and residual blocks, in plain torch: the full form, which hooks and traces see.

``ResidualAttentionBlock`` is every released CLIP's. ``CustomResidualAttentionBlock`` adds the options of its ``block_type``
"custom": norms of queries and keys, cosine attention, scaled heads, inner norms. The fast form of both towers is ``_fast``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.open_clip._norms import LayerNorm, LayerNormFp32, LayerScale


class Attention(nn.Module):
    """Self-attention with open_clip's options; q, k and v are one matrix, ``in_proj_weight``.

    ``qk_norm``: a norm of each head's queries and keys (Henry et al. 2020). ``scaled_cosine``: cosine similarity with a learned
    scale (Liu et al. 2022, Swin V2). ``scale_heads``: a learned factor for each head (Shleifer et al. 2021, NormFormer).
    ``inner_norm``: a norm before the output projection.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        scaled_cosine: bool = False,
        scale_heads: bool = False,
        inner_norm: bool = False,
        logit_scale_max: float = math.log(1.0 / 0.01),
        norm_layer: Callable[[int], nn.Module] = LayerNormFp32,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if scaled_cosine and qk_norm:
            raise ValueError("scaled_cosine and qk_norm were both given; cosine attention normalizes already.")
        if dim % num_heads:
            raise ValueError(f"a width of {dim} was given, which is no multiple of {num_heads} heads.")
        self.scaled_cosine, self.scale_heads = scaled_cosine, scale_heads
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.logit_scale_max = logit_scale_max
        self.in_proj_weight = nn.Parameter(torch.randn((dim * 3, dim)) * self.scale)
        self.in_proj_bias = nn.Parameter(torch.zeros(dim * 3)) if qkv_bias else None
        self.ln_q = norm_layer(self.head_dim) if qk_norm else nn.Identity()
        self.ln_k = norm_layer(self.head_dim) if qk_norm else nn.Identity()
        per_head = (num_heads, 1, 1)
        self.logit_scale = nn.Parameter(torch.full(per_head, math.log(10))) if scaled_cosine else None
        self.attn_drop = nn.Dropout(attn_drop)
        self.head_scale = nn.Parameter(torch.ones(per_head)) if scale_heads else None
        self.ln_inner = norm_layer(dim) if inner_norm else nn.Identity()
        self.out_proj = nn.Linear(dim, dim)
        self.out_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """[B, L, dim] -> [B, L, dim]; ``attn_mask`` additive, or True where nothing is attended: [L, L] or [B * heads, L, L]."""
        stacked = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = stacked.permute(2, 0, 3, 1, 4)  # [B, heads, L, head_dim] each
        mask = None if attn_mask is None else self._additive(attn_mask, query)
        dropout = self.attn_drop.p if self.training else 0.0
        if self.logit_scale is None:
            query, key = self.ln_q(query), self.ln_k(key)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        else:
            factor = self.logit_scale.clamp(max=self.logit_scale_max).exp()
            similarity = F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).transpose(-1, -2) * factor
            mixed = self.attn_drop((similarity if mask is None else similarity + mask).softmax(dim=-1)) @ value
        if self.head_scale is not None:
            mixed = mixed * self.head_scale
        return self.out_drop(self.out_proj(self.ln_inner(mixed.transpose(1, 2).flatten(2))))  # type: ignore[no-any-return]

    def _additive(self, mask: Tensor, query: Tensor) -> Tensor:
        if mask.ndim == 3:
            mask = mask.unflatten(0, (-1, self.num_heads))
        if mask.dtype == torch.bool:
            return torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask, float("-inf"))
        return mask.to(query.dtype)


class AttentionalPooler(nn.Module):
    """Learned queries attend to the tokens (Lee et al. 2019); CoCa's image towers pool so."""

    def __init__(
        self,
        d_model: int,
        context_dim: int,
        n_head: int = 8,
        n_queries: int = 256,
        norm_layer: Callable[[int], nn.Module] = LayerNorm,
    ) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(n_queries, d_model))
        self.attn = nn.MultiheadAttention(d_model, n_head, kdim=context_dim, vdim=context_dim, batch_first=True)
        self.ln_q = norm_layer(d_model)
        self.ln_k = norm_layer(context_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, context_dim] -> [B, queries, d_model]."""
        keys = self.ln_k(x)
        queries = self.ln_q(self.query).expand(keys.shape[0], -1, -1)
        return self.attn(queries, keys, keys, need_weights=False)[0]  # type: ignore[no-any-return]


@contextmanager
def _exportable() -> Iterator[None]:
    """While a trace is recorded: without torch's fused attention of inference, which ONNX has no operator for."""
    fused = torch.backends.mha.get_fastpath_enabled()
    if not (fused and torch.jit.is_tracing()):
        yield
        return
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _mlp(width: int, hidden: int, activation: Callable[[], nn.Module], norm: nn.Module | None = None) -> nn.Sequential:
    parts: list[tuple[str, nn.Module]] = [("c_fc", nn.Linear(width, hidden)), ("gelu", activation())]
    if norm is not None:
        parts.append(("ln", norm))
    return nn.Sequential(OrderedDict([*parts, ("c_proj", nn.Linear(hidden, width))]))


def _scale(width: int, init_value: float | None) -> nn.Module:
    return nn.Identity() if init_value is None else LayerScale(width, init_value)


class ResidualAttentionBlock(nn.Module):
    """Norm, attention, norm, MLP, each branch added; ``is_cross_attention`` gives keys and values a norm of their own."""

    def __init__(
        self,
        d_model: int,
        n_head: int,
        mlp_ratio: float = 4.0,
        ls_init_value: float | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] = LayerNorm,
        is_cross_attention: bool = False,
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        self.ln_1 = norm_layer(d_model)
        self.attn = nn.MultiheadAttention(d_model, n_head, batch_first=batch_first)
        self.ls_1 = _scale(d_model, ls_init_value)
        if is_cross_attention:
            self.ln_1_kv = norm_layer(d_model)
        self.ln_2 = norm_layer(d_model)
        self.mlp = _mlp(d_model, int(d_model * mlp_ratio), act_layer)
        self.ls_2 = _scale(d_model, ls_init_value)

    def get_weight_dtype(self) -> torch.dtype:
        """The dtype that tokens are cast to before the first block."""
        return _weight_dtype(self.mlp)

    def attention(
        self, q_x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """[B, L, width] queries, and keys and values where they are others; ``attn_mask`` as in ``nn.MultiheadAttention``."""
        keys, values = q_x if k_x is None else k_x, q_x if v_x is None else v_x
        mask = None if attn_mask is None else attn_mask.to(q_x.dtype)
        with _exportable():
            return self.attn(q_x, keys, values, need_weights=False, attn_mask=mask)[0]  # type: ignore[no-any-return]

    def forward(
        self, q_x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """[B, L, width] -> [B, L, width]. Without cross-attention ``k_x`` and ``v_x`` are not used, as in open_clip."""
        keys = values = None
        if hasattr(self, "ln_1_kv"):
            keys = None if k_x is None else self.ln_1_kv(k_x)
            values = None if v_x is None else self.ln_1_kv(v_x)
        x = q_x + self.ls_1(self.attention(self.ln_1(q_x), keys, values, attn_mask))
        return x + self.ls_2(self.mlp(self.ln_2(x)))  # type: ignore[no-any-return]


class CustomResidualAttentionBlock(nn.Module):
    """The block of ``block_type`` "custom"; see ``Attention`` for its options. ``scale_fc``: a norm inside the MLP."""

    def __init__(
        self,
        d_model: int,
        n_head: int,
        mlp_ratio: float = 4.0,
        ls_init_value: float | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] = LayerNorm,
        qk_norm: bool = False,
        scale_cosine_attn: bool = False,
        scale_heads: bool = False,
        scale_attn_inner: bool = False,
        scale_attn: bool = False,
        scale_fc: bool = False,
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        assert batch_first, "batch_first=False was given; this block takes [batch, tokens, width] only."
        self.ln_1 = norm_layer(d_model)
        options = {"qk_norm": qk_norm, "scaled_cosine": scale_cosine_attn, "scale_heads": scale_heads}
        self.attn = Attention(d_model, n_head, **options, inner_norm=scale_attn_inner, norm_layer=norm_layer)  # type: ignore[arg-type]
        self.ln_attn = norm_layer(d_model) if scale_attn else nn.Identity()
        self.ls_1 = _scale(d_model, ls_init_value)
        self.ln_2 = norm_layer(d_model)
        hidden = int(d_model * mlp_ratio)
        self.mlp = _mlp(d_model, hidden, act_layer, norm_layer(hidden) if scale_fc else nn.Identity())
        self.ls_2 = _scale(d_model, ls_init_value)

    def get_weight_dtype(self) -> torch.dtype:
        """The dtype that tokens are cast to before the first block."""
        return _weight_dtype(self.mlp)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        x = x + self.ls_1(self.ln_attn(self.attn(self.ln_1(x), attn_mask=attn_mask)))
        return x + self.ls_2(self.mlp(self.ln_2(x)))  # type: ignore[no-any-return]


def _weight_dtype(mlp: nn.Sequential) -> torch.dtype:
    # An int8 layer says which dtype its input should have.
    first: Any = mlp.c_fc
    return getattr(first, "int8_original_dtype", first.weight.dtype)  # type: ignore[no-any-return]
