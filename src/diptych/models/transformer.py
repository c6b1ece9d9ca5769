"""CLIP's text tower: a causal transformer over BPE ids, pooled at the end token (Radford et al. 2021).

Runs packed: only real tokens are computed (see ``_packing``). The end token is the largest id of a caption, at its first
place, as in every CLIP. Not a bidirectional encoder, and no padding mask is ever needed.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.errors import ConfigError
from diptych.models import TOWERS, ModelConfig, SharedPrefixes, TextTower
from diptych.models._layers import Block, Linear, Plan
from diptych.models._packing import PackedCausal, PaddedCausal
from diptych.models._shared_prefix import SharedPrefix
from diptych.types import Encoded


@TOWERS.register("transformer")
class Transformer(TextTower):
    """Ids -> blocks -> the end token -> projection. ``attention`` is "groups" (packed) or "padded" (the plain twin)."""

    attention: Literal["groups", "padded"] = "groups"
    shares_prefixes = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        text = config.text
        hidden = int(text.width * text.mlp_ratio)
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.layers = nn.ModuleList(
            Block(text.width, text.heads, hidden, text.activation or config.activation, eps=text.norm_eps)
            for _ in range(text.layers)
        )
        self.ln_final = nn.LayerNorm(text.width, text.norm_eps)
        self.projection = Linear(text.width, config.embed_dim, bias=text.projection_bias)

    def blocks(self) -> list[nn.Module]:
        """What to shard and to checkpoint."""
        return list(self.layers)

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        return_tokens: bool = False,
        prefix: SharedPrefixes | None = None,
    ) -> Encoded:
        """ids [B, L], real tokens [B] (None: up to the largest id) -> pooled [B, D]; tokens [B, L, width] after the last norm.

        Raises ConfigError when L is longer than the context.
        """
        longest = self.config.text.context_length
        if tokens.ndim != 2 or tokens.shape[1] > longest:
            raise ConfigError(
                f"token ids of shape {list(tokens.shape)} were given; expected [captions, at most {longest}]."
            )
        if lengths is None:
            lengths = tokens.argmax(dim=1) + 1
        if prefix is not None:
            pooled = self.branched(tokens, lengths, prefix.group, prefix.length)
            return Encoded(pooled, pooled)
        if self.attention == "padded" or return_tokens:
            return self._padded(tokens, lengths, return_tokens)
        plan = PackedCausal.of(lengths, tokens.shape[1])
        x = self.token_embedding(tokens.flatten()[plan.gather]) + self.positional_embedding[plan.positions]
        x = self._run(x, plan, cut=True)
        state = plan.unsorted(self.ln_final(x))
        return Encoded(self.projection(state), state)

    def branched(self, tokens: Tensor, lengths: Tensor, stem: Tensor, stem_length: Tensor) -> Tensor:
        """Pooled [B, D] of texts that begin alike in groups, each beginning computed once; equal to ``forward``, to rounding.

        ``tokens`` [B, L], real ``lengths`` [B], ``stem`` [B] the group of each text, ``stem_length`` [B] how many first ids
        it shares with its group (0: none), less than its length. Raises ConfigError when they do not begin alike.
        """
        plan = SharedPrefix.of(tokens, lengths, stem, stem_length)
        x = self.token_embedding(tokens.flatten()[plan.gather]) + self.positional_embedding[plan.positions]
        return plan.unsorted(self.projection(self.ln_final(self._run(x, plan, cut=True))))

    def _padded(self, tokens: Tensor, lengths: Tensor, return_tokens: bool) -> Encoded:
        plan = PaddedCausal(lengths)
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self._run(x, plan, cut=not return_tokens)
        if not return_tokens:
            state = self.ln_final(x)
            return Encoded(self.projection(state), state)
        normed = self.ln_final(x)
        real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        state = plan.pooled(normed)
        return Encoded(self.projection(state), state, normed, real)

    def _run(self, x: Tensor, plan: Plan, cut: bool) -> Tensor:
        last = len(self.layers) - 1
        for number, block in enumerate(self.layers):
            only_pooled = cut and number == last
            if self.recompute and self.training:
                x = checkpoint(block, x, plan, only_pooled, use_reentrant=False)
            else:
                x = block(x, plan, only_pooled)
        return x

    @torch.no_grad()
    def init_weights(self) -> None:
        """CLIP's scheme."""
        width = self.config.text.width
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for block in self.layers:
            block.init_weights(width, len(self.layers))  # type: ignore[operator]
        self.ln_final.reset_parameters()
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        if self.projection.bias is not None:
            nn.init.zeros_(self.projection.bias)
