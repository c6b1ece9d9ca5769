"""CoCa's text decoder (Yu et al. 2022) as a module: text tokens that attend to each other causally, then to image tokens.

The decoder alone. CoCa's model, its generation of text and its loss are not here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.open_clip._attention import ResidualAttentionBlock
from diptych.open_clip._configs import CLIPTextCfg
from diptych.open_clip._norms import LayerNorm
from diptych.open_clip._stacks import Transformer
from diptych.open_clip._text import causal_mask


@dataclass
class MultimodalCfg(CLIPTextCfg):
    """The config of the decoder."""

    mlp_ratio: int = 4
    dim_head: int = 64
    heads: int = 8
    n_queries: int = 256
    attn_pooler_heads: int = 8


class MultimodalTransformer(Transformer):
    """Each layer is a causal block over texts, then a block of cross-attention to images."""

    attn_mask: Tensor

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        context_length: int = 77,
        mlp_ratio: float = 4.0,
        ls_init_value: float | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] = LayerNorm,
        output_dim: int = 512,
        batch_first: bool = True,
    ) -> None:
        options: dict[str, Any] = {"ls_init_value": ls_init_value, "act_layer": act_layer, "norm_layer": norm_layer}
        super().__init__(width, layers, heads, mlp_ratio, **options, batch_first=batch_first)
        self.context_length = context_length
        self.cross_attn = nn.ModuleList(
            ResidualAttentionBlock(width, heads, mlp_ratio, **options, is_cross_attention=True, batch_first=batch_first)
            for _ in range(layers)
        )
        self.register_buffer("attn_mask", self.build_attention_mask(), persistent=False)
        self.ln_final = norm_layer(width)
        self.text_projection: nn.Parameter | None = nn.Parameter(torch.empty(width, output_dim))

    @torch.no_grad()
    def init_parameters(self) -> None:
        """CLIP's scheme for both kinds of blocks, and for the projection, which the constructor leaves without values."""
        branch = self.width**-0.5 * (2 * self.layers) ** -0.5
        for block in (*self.resblocks, *self.cross_attn):
            nn.init.normal_(block.attn.in_proj_weight, std=self.width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=branch)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * self.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=branch)
        if self.text_projection is not None:
            nn.init.normal_(self.text_projection, std=self.width**-0.5)

    def build_attention_mask(self) -> Tensor:
        """Additive [context, context]."""
        return causal_mask(self.context_length)

    def forward_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """Not for this module, in open_clip neither."""
        del args, kwargs
        raise AssertionError("forward_intermediates was called on a decoder with cross-attention, which has none.")

    def forward(self, image_embs: Tensor, text_embs: Tensor) -> Tensor:  # type: ignore[override]
        """Image tokens [B, N, width] and text tokens [B, L, width] -> [B, L, output_dim]."""
        mask = self.attn_mask[: text_embs.shape[1], : text_embs.shape[1]]
        images, x = self._turned(image_embs), self._turned(text_embs)
        for own, cross in zip(self.resblocks, self.cross_attn, strict=True):
            x = self._block(own, x, mask)
            if self.grad_checkpointing:
                x = checkpoint(cross, x, images, images, use_reentrant=False)
            else:
                x = cross(x, k_x=images, v_x=images)
        out = self.ln_final(self._turned(x))
        return out if self.text_projection is None else out @ self.text_projection  # type: ignore[no-any-return]

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass."""
        self.grad_checkpointing = enable
