"""The parts that transformers are built from: attention, MLP, residual block, a stack of blocks, and the activations.

Attention keeps four plain ``Linear`` projections, so that adapters, tensor-parallel plans, export and quantization need no
special case. What attends to what is not decided here: a ``Plan`` is handed in (see ``_packing``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.models._cpu_attention import cpu_attention, in_main_memory, small_products_are_slow
from diptych.models._observed import traced
from diptych.models._projections import Linear, projected


class Plan(Protocol):
    """Which token attends to which, for tokens in the plan's layout.

    Queries, keys and values are [..., heads * head width] over the layout's tokens.
    """

    @property
    def single_queries(self) -> bool:
        """Whether ``attend_pooled`` is this plan's form of a last block; else ``attend`` is, and then ``pooled``."""

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


class Attention(nn.Module):
    """Multi-head attention; a plan says which tokens attend to which.

    How many heads there are is asked of what the projections give, so that a layer that has some of them computes just these.
    """

    enter: Callable[[Tensor], Tensor] | None = None
    """Prepares what the projections share; set by a layout that splits them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, plan: Plan, only_pooled: bool = False) -> Tensor:
        """Every token of the layout; ``only_pooled`` has queries of the pooled tokens alone, [B, D], keys and values of all."""
        x = x if self.enter is None else self.enter(x)
        if only_pooled and plan.single_queries:
            query, (key, value) = self.q(plan.pooled(x)), projected(x, (self.k, self.v))
            return self.out(plan.attend_pooled(query, key, value, query.shape[-1] // self.head_width))
        query, key, value = projected(x, (self.q, self.k, self.v))
        mixed = plan.attend(query, key, value, query.shape[-1] // self.head_width)
        return self.out(plan.pooled(mixed) if only_pooled else mixed)


class Block(nn.Module):
    """A pre-norm residual block: attention, then MLP; ``layer_scale`` multiplies what each branch adds (Touvron et al. 2021)."""

    enter: None = None
    """Its MLP can be split by a layout, which prepares the input of ``mlp_in``."""

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

        The last block of a tower needs nothing but its pooled tokens: their queries, and the keys and values of all. That
        leaves out about 20/24 of the block and is exact.
        """
        if only_pooled and type(self.attention) is Attention:
            return self._mlp(self._attended(plan.pooled(x), self.attention(self.ln_1(x), plan, only_pooled=True)))
        if only_pooled:  # somebody's own attention knows a plan, and gives every token
            return self._mlp(self._attended(plan.pooled(x), plan.pooled(self.attention(self.ln_1(x), plan))))
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
    queries, keys, values = (split_heads(item, heads) for item in (query, key, value))
    return join_heads(scaled_dot_product(queries, keys, values, causal=causal))


def scaled_dot_product(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """torch's attention of split heads [B, heads, L, d]; ``mask`` is True where a query attends to a key.

    In main memory, half precision is computed in fp32: torch's half kernel there is no faster forward and 1.1 (257 tokens) to 5
    times slower backward (14 tokens), and fp32 is nearer to the truth.
    """
    if mask is None and not traced() and small_products_are_slow(query):
        return cpu_attention(query, key, value, causal)
    if query.dtype not in (torch.bfloat16, torch.float16) or not in_main_memory(query):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    with torch.autocast(query.device.type, enabled=False):
        mixed = scaled_dot_product(query.float(), key.float(), value.float(), mask, causal)
    return mixed.to(query.dtype)


def run_blocks(
    blocks: Iterable[nn.Module], x: Tensor, plan: Plan, *, only_pooled: bool = False, checkpointing: bool = False
) -> Tensor:
    """Tokens through every block; with ``only_pooled`` the last one gives its pooled tokens alone, [B, D].

    ``checkpointing`` recomputes each block's activations in the backward pass.
    """
    stack = list(blocks)
    for number, block in enumerate(stack, start=1):
        arguments = (x, plan, only_pooled and number == len(stack))
        x = checkpoint(block, *arguments, use_reentrant=False) if checkpointing else block(*arguments)
    return x


def rows(table: Tensor, indices: Tensor) -> Tensor:
    """``table[indices]`` along the first dimension, of repeated indices: [P, ...] and int64 [n] -> [n, ...].

    By ``F.embedding``: its backward pass adds the gradients of equal indices in order, where that of indexing adds them as
    threads come by, so that equal runs would differ in the last bits.
    """
    return F.embedding(indices, table.flatten(1)).unflatten(1, table.shape[1:])
