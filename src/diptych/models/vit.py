"""The vision transformer of CLIP (Dosovitskiy et al. 2021; Radford et al. 2021): class token, norm before and after.

CLIPA's (Li et al. 2023) has no norm before, and takes the mean of the patches in place of the class token.
Takes uint8 pictures and normalises them itself. Positions are learned, one per patch of one image size: resizing them is
the weights room's affair.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.models import TOWERS, ImageTower, ModelConfig
from diptych.models._config import VitConfig
from diptych.models._layers import Block, Linear
from diptych.models._packing import FullAttention
from diptych.types import Encoded


@TOWERS.register("vit")
class Vit(ImageTower):
    """Patches -> blocks -> the class token -> projection."""

    # Share of patches left out while training (Li et al. 2023, "FLIP"); changes the result, not only the speed.
    patch_dropout = 0.0

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
        self.pool = vision.pool
        self.layers = nn.ModuleList(
            Block(vision.width, vision.heads, hidden, config.activation, eps=eps, layer_scale=vision.layer_scale)
            for _ in range(vision.layers)
        )
        self.ln_post = nn.LayerNorm(vision.width, eps)
        self.projection = Linear(vision.width, config.embed_dim, bias=False)

    def blocks(self) -> list[nn.Module]:
        """What to shard and to checkpoint."""
        return list(self.layers)

    def forward(self, images: Tensor, return_tokens: bool = False) -> Encoded:
        """uint8 or normalised [B, 3, H, W] -> pooled [B, D]; tokens [B, N, width] are patches after the last norm."""
        x = self.patch_embedding(self.normalize(images)).flatten(2).transpose(1, 2)  # [B, N, width]
        classes = self.class_embedding.to(x.dtype).expand(len(x), 1, -1)
        x = torch.cat([classes, x], dim=1) + self.positional_embedding.to(x.dtype)
        if self.training and self.patch_dropout and not return_tokens:
            x = self._some_patches(x)
        x = self.ln_pre(x)
        plan, last = FullAttention(), len(self.layers) - 1
        for number, block in enumerate(self.layers):
            only_pooled = number == last and not return_tokens and self.pool == "class"
            if self.recompute and self.training:
                x = checkpoint(block, x, plan, only_pooled, use_reentrant=False)
            else:
                x = block(x, plan, only_pooled)
        if self.pool == "patches":
            first = x[:, 1:].mean(dim=1)
        else:
            first = x[:, 0] if return_tokens else x  # the last block gave it alone
        state = self.ln_post(first)
        pooled = self.projection(state)
        if not return_tokens:
            return Encoded(pooled, state)
        return Encoded(
            pooled,
            state,
            self.ln_post(x[:, 1:]),
            torch.ones(x.shape[0], x.shape[1] - 1, dtype=torch.bool, device=x.device),
        )

    def _some_patches(self, x: Tensor) -> Tensor:
        """The class token and a random choice of patches of each picture, drawn where they are, without the host."""
        patches = x.shape[1] - 1
        kept = max(1, int(patches * (1 - self.patch_dropout)))
        chosen = torch.rand(len(x), patches, device=x.device).topk(kept, dim=1).indices + 1
        return torch.cat([x[:, :1], x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))], dim=1)

    @torch.no_grad()
    def init_weights(self) -> None:
        """CLIP's scheme for both towers."""
        vision = self.config.vision
        width = vision.width
        nn.init.normal_(self.patch_embedding.weight, std=self.patch_embedding.weight[0].numel() ** -0.5)
        nn.init.normal_(self.class_embedding, std=width**-0.5)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for block in self.layers:
            block.init_weights(width, len(self.layers))  # type: ignore[operator]
        if isinstance(self.ln_pre, nn.LayerNorm):
            self.ln_pre.reset_parameters()
        self.ln_post.reset_parameters()
        nn.init.normal_(self.projection.weight, std=width**-0.5)
