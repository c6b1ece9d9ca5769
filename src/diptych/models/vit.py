"""The vision transformer of CLIP (Dosovitskiy et al. 2021; Radford et al. 2021): class token, norm before and after.

CLIPA's (Li et al. 2023) has no norm before, and takes the mean of the patches in place of the class token.
Takes uint8 images and normalizes them itself. Positions are learned, one per patch of one image size: ``weights`` resizes
them, not this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from diptych.models import _seeded
from diptych.models._base import TOWERS, ImageTower
from diptych.models._config import ModelConfig, VisionConfig
from diptych.models._layers import Block, Linear, run_blocks
from diptych.models._observed import observed
from diptych.models._packing import FullAttention
from diptych.types import Encoded


@dataclass(frozen=True)
class VitConfig(VisionConfig):
    """A vision transformer; ``mlp_ratio`` times ``width``, rounded down, is the hidden width of its MLPs."""

    patch_size: int
    layers: int
    heads: int
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    """Initial factor of each residual branch; None has no such parameters."""
    norm_eps: float = 1e-5
    norm_before: bool = True
    """A norm before the first block; CLIPA has none."""
    pool: Literal["class", "patches"] = "class"
    """What becomes the image's feature: the class token, or the mean of the patches, normed afterwards (CLIPA)."""
    norm_tokens: bool = True
    """Whether tokens that are asked for are taken after the last norm; DeCLIP takes its dense features before it."""
    family: str = field(default="vit", kw_only=True)

    def problem(self, embed_dim: int) -> str:
        """Patches that do not tile the image, heads that do not divide the width."""
        if self.image_size % self.patch_size:
            return f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}."
        if self.width % self.heads:
            return f"the image tower's width {self.width} is no multiple of its {self.heads} heads."
        return ""


@TOWERS.register("vit")
class Vit(ImageTower):
    """Patches -> blocks -> the class token -> projection."""

    Config = VitConfig

    patch_dropout = 0.0
    """Share of patches left out while training (Li et al. 2023, "FLIP"); changes the result, not only the speed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        vision = config.vision
        assert isinstance(vision, VitConfig)
        patches = (vision.image_size // vision.patch_size) ** 2
        hidden, eps = int(vision.width * vision.mlp_ratio), vision.norm_eps
        self.patch_embedding = nn.Conv2d(3, vision.width, vision.patch_size, vision.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(vision.width))
        self.positional_embedding = nn.Parameter(torch.empty(patches + 1, vision.width))
        self.ln_pre = nn.LayerNorm(vision.width, eps) if vision.norm_before else nn.Identity()
        self.pool, self.norm_tokens = vision.pool, vision.norm_tokens
        self.layers = nn.ModuleList(
            Block(vision.width, vision.heads, hidden, config.activation, eps=eps, layer_scale=vision.layer_scale)
            for _ in range(vision.layers)
        )
        self.ln_post = nn.LayerNorm(vision.width, eps)
        self.projection = Linear(vision.width, config.embed_dim, bias=False)

    def blocks(self) -> list[nn.Module]:
        """The units of sharding and of activation checkpointing."""
        return list(self.layers)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """[B, N, width] -> [B, N, D], by the norm, where tokens are taken before it, and the projection of the pooled state."""
        return self.projection(tokens if self.norm_tokens else self.ln_post(tokens))

    def forward(self, images: Tensor, return_tokens: bool = False, seeds: Tensor | None = None) -> Encoded:
        """uint8 or normalized [B, 3, H, W] -> pooled [B, D]; tokens [B, N, width] are the patches after the last norm
        (before it where the architecture has ``norm_tokens`` false).

        N counts the patches that patch dropout left, in training. ``seeds`` int64 [B] decide which; see ``ImageTower``.
        """
        x = self.patch_embedding(self.normalize(images)).flatten(2).transpose(1, 2)  # [B, N, width]
        classes = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([classes, x], dim=1) + self.positional_embedding.to(x.dtype)
        if self.training and self.patch_dropout:
            x = self._drop_patches(x, seeds)
        only_pooled = self.pool == "class" and not return_tokens and not observed(self, images)
        checkpointing = self.checkpointing and self.training
        x = run_blocks(
            self.layers, self.ln_pre(x), FullAttention(), only_pooled=only_pooled, checkpointing=checkpointing
        )
        if only_pooled:
            state = self.ln_post(x)
            return Encoded(self.projection(state), state)
        if self.pool == "class":
            normed = self.ln_post(x)
            state, tokens = normed[:, 0], (normed if self.norm_tokens else x)[:, 1:]
        else:
            state = self.ln_post(x[:, 1:].mean(dim=1))
            tokens = self.ln_post(x[:, 1:]) if return_tokens and self.norm_tokens else x[:, 1:]
        pooled = self.projection(state)
        if not return_tokens:
            return Encoded(pooled, state)
        return Encoded(pooled, state, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=x.device))

    def _drop_patches(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        """The class token and a random choice of patches of each image, drawn on its device, without the host."""
        batch, patches = x.shape[0], x.shape[1] - 1
        remaining = max(1, int(patches * (1 - self.patch_dropout)))
        seeds = _seeded.seeds_of(seeds, batch, x.device)
        chosen = _seeded.subset(seeds, _seeded.PATCH_DROPOUT, patches, remaining) + 1
        # Distinct indices: the backward pass of gather adds nothing twice, so that its order does not matter.
        return torch.cat([x[:, :1], x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))], dim=1)

    @torch.no_grad()
    def init_weights(self) -> None:
        """CLIP's scheme for both towers."""
        width = self.projection.in_features
        nn.init.normal_(self.patch_embedding.weight, std=self.patch_embedding.weight[0].numel() ** -0.5)
        nn.init.normal_(self.class_embedding, std=width**-0.5)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for block in self.layers:
            block.init_weights(width, len(self.layers))  # type: ignore[operator]
        if isinstance(self.ln_pre, nn.LayerNorm):
            self.ln_pre.reset_parameters()
        self.ln_post.reset_parameters()
        nn.init.normal_(self.projection.weight, std=width**-0.5)
