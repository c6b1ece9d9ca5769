"""What both text towers are built of: token and position embeddings, blocks, a last norm and a projection.

A family says which tokens attend to which and which one is pooled; everything else is here. No family itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.models._base import TextTower
from diptych.models._config import ModelConfig
from diptych.models._layers import Block, Linear, Plan, run_blocks
from diptych.models._observed import recorded, traced


class BlockText(TextTower):
    """Ids -> embeddings -> blocks -> norm -> projection, SigLIP's with bias."""

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
        """The units of sharding and of activation checkpointing."""
        return list(self.layers)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """[B, N, width] -> [B, N, D], by the projection of the pooled token."""
        return self.projection(tokens)

    def check_ids(self, tokens: Tensor) -> None:
        """Raise ConfigError unless the ids are integers [B, 1 to the context]; not of their values while a graph is recorded."""
        if not isinstance(tokens, Tensor):
            raise ConfigError(f"a {type(tokens).__name__} was given; expected token ids, as the tokenizer gives them.")
        context = self.config.text.context_length
        if tokens.dtype not in (torch.int64, torch.int32):
            raise ConfigError(
                f"token ids of type {tokens.dtype} were given; expected int64, as a tokenizer gives them."
            )
        if tokens.ndim != 2 or (not recorded() and not 1 <= tokens.shape[1] <= context):
            raise ConfigError(
                f"token ids of shape {list(tokens.shape)} were given; expected [captions, at most {context}]."
            )
        if not traced(tokens) and tokens.is_cpu and tokens.numel():  # elsewhere it would wait for the device
            low, high = (int(item) for item in tokens.aminmax())
            if low < 0 or high >= self.config.text.vocab_size:
                raise ConfigError(
                    f"token ids from {low} to {high} were given; {self.config.name} has a vocabulary of"
                    f" {self.config.text.vocab_size:,}: use its own tokenizer."
                )

    def run(self, x: Tensor, plan: Plan, only_pooled: bool) -> Tensor:
        """Embedded tokens through the blocks and the last norm; only the pooled tokens where nothing else is asked for."""
        checkpointing = self.checkpointing and self.training
        return self.ln_final(run_blocks(self.layers, x, plan, only_pooled=only_pooled, checkpointing=checkpointing))

    @torch.no_grad()
    def init_weights(self) -> None:
        """CLIP's scheme, which suits any transformer of the same shape."""
        width = self.config.text.width
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for block in self.layers:
            block.init_weights(width, len(self.layers))  # type: ignore[operator]
        self.ln_final.reset_parameters()
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        if self.projection.bias is not None:
            nn.init.zeros_(self.projection.bias)
