"""The text tower of SigLIP, SigLIP 2 and CLIPA: every token sees every other, padding included, and the last place is pooled.

Trained so, it must be run so: a shorter batch is padded to the full context here, whatever its maker padded it to. Not
causal, so nothing can be packed or cut; ``siglip`` is the image tower.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.errors import ConfigError
from diptych.models import TOWERS, ModelConfig, TextTower
from diptych.models._layers import Block, Linear
from diptych.models._packing import LastTokenPool
from diptych.types import Encoded


@TOWERS.register("siglip_text")
class SiglipText(TextTower):
    """Ids -> blocks -> norm -> the last place -> projection, SigLIP's with bias."""

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

    def forward(self, tokens: Tensor, lengths: Tensor | None = None, return_tokens: bool = False) -> Encoded:
        """ids [B, L] -> pooled [B, D]; tokens [B, context, width] after the last norm. ``lengths`` changes nothing.

        Raises ConfigError when L is longer than the context.
        """
        context = self.config.text.context_length
        if tokens.ndim != 2 or tokens.shape[1] > context:
            raise ConfigError(
                f"token ids of shape {list(tokens.shape)} were given; expected [captions, at most {context}]."
            )
        tokens = F.pad(tokens, (0, context - tokens.shape[1]), value=self.config.text.pad_id)
        x = self.token_embedding(tokens) + self.positional_embedding
        plan, last = LastTokenPool(), len(self.layers) - 1
        for number, block in enumerate(self.layers):
            only_pooled = number == last and not return_tokens
            if self.recompute and self.training:
                x = checkpoint(block, x, plan, only_pooled, use_reentrant=False)
            else:
                x = block(x, plan, only_pooled)
        x = self.ln_final(x)
        if not return_tokens:
            return Encoded(self.projection(x), x)
        return Encoded(self.projection(x[:, -1]), x[:, -1], x, torch.ones_like(tokens, dtype=torch.bool))

    @torch.no_grad()
    def init_weights(self) -> None:
        """CLIP's scheme, which suits a transformer of the same shape."""
        width = self.config.text.width
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for block in self.layers:
            block.init_weights(width, len(self.layers))  # type: ignore[operator]
        self.ln_final.reset_parameters()
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        if self.projection.bias is not None:
            nn.init.zeros_(self.projection.bias)
