"""The image tower of SigLIP and SigLIP 2 at a fixed resolution (Zhai et al. 2023; Tschannen et al. 2025).

A vision transformer without class token and without a norm before the blocks; a learned query attends to all patches, and
an MLP follows. Not NaFlex: one image size, one grid of positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from diptych.models._base import TOWERS, ImageTower
from diptych.models._config import ModelConfig, VisionConfig
from diptych.models._layers import ACTIVATIONS, Block, Linear, attention, run_blocks
from diptych.models._observed import hooked
from diptych.models._packing import FullAttention
from diptych.types import Encoded


@dataclass(frozen=True)
class SiglipConfig(VisionConfig):
    """SigLIP's vision transformer: no class token, attention pooling; ``norm_eps`` is that of its layer norms."""

    patch_size: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    family: str = field(default="siglip", kw_only=True)

    def problem(self, embed_dim: int) -> str:
        """Heads that do not divide the width, an embedding of another width; a strip that no patch covers is allowed."""
        # SigLIP's SO400M at 384 pixels leaves a strip of 6 unseen.
        if self.width % self.heads:
            return f"the image tower's width {self.width} is no multiple of its {self.heads} heads."
        if self.width != embed_dim:
            return f"embed_dim {embed_dim} must be the siglip tower's width {self.width}."
        return ""


class MAPHead(nn.Module):
    """Attention pooling with a learned query, then a residual MLP ("MAP head" of big_vision)."""

    enter: Callable[[Tensor], Tensor] | None = None
    """Prepares what the projections share; set by a layout that splits them."""

    def __init__(self, width: int, heads: int, mlp_width: int, activation: str, *, eps: float) -> None:
        super().__init__()
        self.head_width = width // heads
        self.probe = nn.Parameter(torch.empty(width))
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.out = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps)
        self.mlp_in = Linear(width, mlp_width)
        self.activation = ACTIVATIONS[activation]()
        self.mlp_out = Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> [B, width]."""
        query, batch = self.probe.to(x.dtype), (x.shape[0], 1, -1)
        if self.enter is not None:
            query, x = self.enter(query), self.enter(x)
        # The query is the same for every image: computed once, unless a hook wants to see it beside each.
        query = self.q(query.expand(batch)) if hooked(self.q) else self.q(query).expand(batch)
        pooled = self.out(attention(query, self.k(x), self.v(x), query.shape[-1] // self.head_width))[:, 0]
        return pooled + self.mlp_out(self.activation(self.mlp_in(self.norm(pooled))))


@TOWERS.register("siglip")
class Siglip(ImageTower):
    """Patches -> blocks -> norm -> attention pooling. The pooled width is the embedding's: there is no projection."""

    Config = SiglipConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        vision = config.vision
        assert isinstance(vision, SiglipConfig)
        patches = (vision.image_size // vision.patch_size) ** 2
        hidden = int(vision.width * vision.mlp_ratio)
        activation, eps = config.activation, vision.norm_eps
        self.patch_embedding = nn.Conv2d(3, vision.width, vision.patch_size, vision.patch_size)
        self.positional_embedding = nn.Parameter(torch.empty(patches, vision.width))
        self.layers = nn.ModuleList(
            Block(vision.width, vision.heads, hidden, activation, eps=eps) for _ in range(vision.layers)
        )
        self.ln_post = nn.LayerNorm(vision.width, eps)
        self.pool = MAPHead(vision.width, vision.heads, hidden, activation, eps=eps)

    def blocks(self) -> list[nn.Module]:
        """The units of sharding and of activation checkpointing."""
        return list(self.layers)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """The tokens themselves: the tower's width is the embedding's."""
        return tokens

    def forward(self, images: Tensor, return_tokens: bool = False, seeds: Tensor | None = None) -> Encoded:
        """uint8 or normalized [B, 3, H, W] -> pooled [B, D]; tokens [B, N, width] are the patches after the last norm.

        ``state`` is ``pooled``. Nothing here draws, so ``seeds`` changes nothing.
        """
        x = self.patch_embedding(self.normalize(images)).flatten(2).transpose(1, 2)  # [B, N, width]
        x = x + self.positional_embedding.to(x.dtype)
        x = self.ln_post(
            run_blocks(self.layers, x, FullAttention(), checkpointing=self.checkpointing and self.training)
        )
        pooled = self.pool(x)
        if not return_tokens:
            return Encoded(pooled, pooled)
        return Encoded(pooled, pooled, x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))

    @torch.no_grad()
    def init_weights(self) -> None:
        """big_vision's scheme: Xavier for the linears, small positions."""
        width = self.ln_post.normalized_shape[0]
        nn.init.normal_(self.patch_embedding.weight, std=self.patch_embedding.weight[0].numel() ** -0.5)
        nn.init.zeros_(self.patch_embedding.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.positional_embedding, std=width**-0.5)
        nn.init.normal_(self.pool.probe, std=width**-0.5)
        for module in [*self.layers.modules(), *self.pool.modules()]:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        self.ln_post.reset_parameters()
