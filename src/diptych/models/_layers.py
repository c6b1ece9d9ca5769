"""The parts that both transformers are built from: attention, MLP, residual block, and the activations.

Attention keeps four plain ``Linear`` projections, so that adapters, tensor-parallel plans, export and quantisation need no
special case. What attends to what is not decided here: a ``Plan`` is handed in (see ``_packing``).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.models._cpu_attention import cpu_attention, small_products_are_slow


class Plan(Protocol):
    """Who attends to whom, for tokens laid out as the plan's maker laid them out.

    Queries, keys and values are [..., heads * head width] over the layout's tokens.
    """

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Attention of every token; the result is laid out like ``query``."""

    def attend_pooled(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Attention of the one pooled token of each sequence: ``query`` and result [B, D]."""

    def pooled(self, tokens: Tensor) -> Tensor:
        """The pooled token of each sequence, [B, D]."""


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """[B, L, heads * d] -> [B, heads, L, d]."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(tokens: Tensor) -> Tensor:
    """[B, heads, L, d] -> [B, L, heads * d]."""
    return tokens.transpose(1, 2).flatten(2)


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(1.702 * x)


class TanhGelu(nn.GELU):
    """The tanh form of GELU, as in JAX: SigLIP's activation."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quickgelu": QuickGelu, "gelu_tanh": TanhGelu}


class Linear(nn.Linear):
    """Without torch's own initial values: ``init_weights`` draws them, and loading has no use for any."""

    def reset_parameters(self) -> None:
        """Nothing: memory is filled by ``init_weights`` or by weights."""


class Attention(nn.Module):
    """Multi-head attention over whatever a plan lets see."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, plan: Plan) -> Tensor:
        """Every token of the layout."""
        return self.out(plan.attend(self.q(x), self.k(x), self.v(x), self.heads))

    def pooled(self, x: Tensor, plan: Plan) -> Tensor:
        """Only the pooled tokens ask, [B, D]; all tokens answer."""
        return self.out(plan.attend_pooled(self.q(plan.pooled(x)), self.k(x), self.v(x), self.heads))


class Block(nn.Module):
    """A pre-norm residual block: attention, then MLP; ``layer_scale`` multiplies what each branch adds (Touvron et al. 2021)."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        activation: str,
        *,
        eps: float = 1e-5,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps)
        self.attention = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps)
        self.mlp_in = Linear(width, mlp_width)
        self.activation = ACTIVATIONS[activation]()
        self.mlp_out = Linear(mlp_width, width)
        self.layer_scale = layer_scale
        if layer_scale is not None:
            self.scale_1, self.scale_2 = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))

    def _attended(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + (branch if self.layer_scale is None else branch * self.scale_1)

    def _mlp(self, x: Tensor) -> Tensor:
        branch = self.mlp_out(self.activation(self.mlp_in(self.ln_2(x))))
        return x + (branch if self.layer_scale is None else branch * self.scale_2)

    def forward(self, x: Tensor, plan: Plan, only_pooled: bool = False) -> Tensor:
        """All tokens, in the plan's layout; or with ``only_pooled`` the pooled tokens alone, [B, D].

        The last block of a tower needs nothing but its pooled tokens: their queries, and everybody's keys and values.
        That leaves out about 20/24 of the block and is exact.
        """
        if only_pooled:
            return self._mlp(self._attended(plan.pooled(x), self.attention.pooled(self.ln_1(x), plan)))
        return self._mlp(self._attended(x, self.attention(self.ln_1(x), plan)))

    @torch.no_grad()
    def init_weights(self, width: int, layers: int) -> None:
        """CLIP's scheme: residual branches shrink with the depth of the tower."""
        branch = width**-0.5 * (2 * layers) ** -0.5
        for linear in (self.attention.q, self.attention.k, self.attention.v):
            nn.init.normal_(linear.weight, std=width**-0.5)
        nn.init.normal_(self.attention.out.weight, std=branch)
        nn.init.normal_(self.mlp_in.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.mlp_out.weight, std=branch)
        if self.layer_scale is not None:
            nn.init.constant_(self.scale_1, self.layer_scale)
            nn.init.constant_(self.scale_2, self.layer_scale)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Scaled dot-product attention of [B, L, D] (queries may be fewer than keys), heads split and joined again."""
    asks, keys, values = (split_heads(item, heads) for item in (query, key, value))
    return join_heads(scaled_dot_product(asks, keys, values, causal=causal))


def scaled_dot_product(
    asks: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """torch's attention of split heads [B, heads, L, d]; ``mask`` is True where a key may be seen.

    In main memory, half precision is computed in fp32: torch's half kernel there is no faster forward and 1.1 (257 tokens) to 5
    times slower backward (14 tokens), and fp32 is nearer to the truth.
    """
    if mask is None and small_products_are_slow(asks):
        return cpu_attention(asks, keys, values, causal)
    if not (asks.is_cpu and asks.dtype in (torch.bfloat16, torch.float16)):
        return F.scaled_dot_product_attention(asks, keys, values, attn_mask=mask, is_causal=causal)
    with torch.autocast(asks.device.type, enabled=False):
        mixed = scaled_dot_product(asks.float(), keys.float(), values.float(), mask, causal)
    return mixed.to(asks.dtype)
