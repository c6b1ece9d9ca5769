"""The fast form of both towers: texts packed without padding, and of the last block only the pooled tokens.

Exact (see ``diptych.models``), on the parameters of the modules themselves, so that loading, casting, moving and training need
nothing. Only for towers that are as this package built them and that nobody looks into: ``intact`` decides, and every other
case takes the full form of the modules. Not a second set of weights.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.models import CausalPlan, FullAttention, hooked, traced, unplanned
from diptych.open_clip._attention import ResidualAttentionBlock
from diptych.open_clip._norms import LayerNorm, LayerNormFp32, LayerScale, QuickGELU
from diptych.open_clip._stacks import Transformer

NORMS = (LayerNorm, LayerNormFp32, nn.LayerNorm)
ACTIVATIONS = (nn.GELU, QuickGELU)
# What the fast form does not call. Programs put functions of their own on these classes, to read or change attention.
METHODS = {
    (kind, name): getattr(kind, name)
    for kind, names in (
        (Transformer, ("forward",)),
        (ResidualAttentionBlock, ("forward", "attention")),
        (nn.MultiheadAttention, ("forward",)),
        (nn.Linear, ("forward",)),
        (nn.Module, ("__call__",)),
    )
    for name in names
}


def intact(stack: Any, *around: nn.Module | None, inputs: Tensor) -> bool:
    """Whether the fast form gives what the full one does, and nobody could notice.

    ``around`` are the tower's other modules whose inputs the fast form changes.
    """
    if any(getattr(kind, name) is not method for (kind, name), method in METHODS.items()):
        return False
    if type(stack) is not Transformer or not len(stack.resblocks) or not stack.batch_first:
        return False
    if traced(inputs) or hooked(stack, *around):
        return False
    return all(_intact_block(block) for block in stack.resblocks)


def _intact_block(block: Any) -> bool:
    if (
        type(block) is not ResidualAttentionBlock
        or hasattr(block, "ln_1_kv")
        or {"forward", "attention"} & set(block.__dict__)
    ):
        return False
    attention, mlp = block.attn, block.mlp
    if type(attention) is not nn.MultiheadAttention or type(mlp) is not nn.Sequential or len(mlp) != 3:
        return False
    parts = (block.ln_1, block.ln_2, block.ls_1, block.ls_2, attention, attention.out_proj, *mlp)
    if any("forward" in part.__dict__ for part in parts):
        return False
    plain_attention = attention.in_proj_weight is not None and attention.batch_first and attention.bias_k is None
    return (
        plain_attention
        and not attention.dropout and not attention.add_zero_attn
        and type(attention.out_proj).__mro__[1] is nn.Linear  # torch's own subclass, which nothing replaces
        and type(block.ln_1) in NORMS and type(block.ln_2) in NORMS
        and type(block.ls_1) in (nn.Identity, LayerScale) and type(block.ls_2) in (nn.Identity, LayerScale)
        and type(mlp[0]) is nn.Linear and type(mlp[2]) is nn.Linear and type(mlp[1]) in ACTIVATIONS
    )  # fmt: skip


def each_token_alone(norm: nn.Module) -> bool:
    """Whether a norm after the blocks may see only the pooled tokens; one that programs put there may mix tokens."""
    return type(norm) in (*NORMS, nn.Identity) and "forward" not in norm.__dict__


def run_stack(stack: Transformer, x: Tensor, plan: FullAttention | CausalPlan, only_pooled: bool) -> Tensor:
    """Tokens in the plan's layout through every block; with ``only_pooled`` the last one gives its pooled tokens, [B, D]."""
    for number, block in enumerate(stack.resblocks, start=1):
        arguments: Any = (block, x, plan, only_pooled and number == len(stack.resblocks))
        x = checkpoint(_block, *arguments, use_reentrant=False) if stack.grad_checkpointing else _block(*arguments)
    return x


def _block(block: Any, x: Tensor, plan: FullAttention | CausalPlan, only_pooled: bool) -> Tensor:
    attention = block.attn
    normed, heads = block.ln_1(x), attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if only_pooled and plan.single_queries:
        width = weight.shape[1]
        query = F.linear(plan.pooled(normed), weight[:width], None if bias is None else bias[:width])
        key, value = F.linear(normed, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
        x, mixed = plan.pooled(x), plan.attend_pooled(query, key, value, heads)
    else:
        query, key, value = F.linear(normed, weight, bias).chunk(3, dim=-1)
        mixed = plan.attend(query, key, value, heads)
        if only_pooled:
            x, mixed = plan.pooled(x), plan.pooled(mixed)
    # The projection's weight and not its forward: torch's own attention does not call it either.
    x = x + block.ls_1(F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias))
    return x + block.ls_2(block.mlp(block.ln_2(x)))  # type: ignore[no-any-return]


def packed_text(stack: Transformer, embedding: nn.Embedding, positions: Tensor, ids: Tensor, ends: Tensor) -> Tensor:
    """The state [B, width] of the token at ``ends`` int64 [B] of causal texts ``ids`` [B, L], before the last norm."""
    plan, dtype = unplanned(ends + 1, ids.shape[1]), stack.get_cast_dtype()
    x = plan.embedded(ids, lambda tokens: embedding(tokens).to(dtype), positions.to(dtype))
    return plan.unsorted(run_stack(stack, x, plan, only_pooled=True))
