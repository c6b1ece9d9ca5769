"""The stack of blocks inside of a tower, under open_clip's names ``Transformer`` and ``CustomTransformer``.

A stack always runs in full: who calls it, or registers a hook inside of it, sees every token. The towers decide about fast forms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.open_clip._attention import CustomResidualAttentionBlock, ResidualAttentionBlock
from diptych.open_clip._norms import LayerNorm
from diptych.open_clip.utils import feature_take_indices


class _Stack(nn.Module):
    """Blocks one after the other; ``grad_checkpointing`` recomputes their activations in the backward pass."""

    resblocks: nn.ModuleList

    def __init__(self, width: int, layers: int, batch_first: bool) -> None:
        super().__init__()
        self.width, self.layers, self.batch_first = width, layers, batch_first
        self.grad_checkpointing = False

    def get_cast_dtype(self) -> torch.dtype:
        """The dtype that tokens are cast to before the first block."""
        return self.resblocks[0].get_weight_dtype()  # type: ignore[no-any-return, operator]

    def _block(self, block: nn.Module, x: Tensor, attn_mask: Tensor | None) -> Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint(block, x, attn_mask=attn_mask, use_reentrant=False)  # type: ignore[no-any-return]
        return block(x, attn_mask=attn_mask)  # type: ignore[no-any-return]

    def _turned(self, x: Tensor) -> Tensor:
        """Between [B, L, width] and the layout of the blocks."""
        return x if self.batch_first else x.transpose(0, 1)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """[B, L, width] -> [B, L, width]."""
        x = self._turned(x)
        for block in self.resblocks:
            x = self._block(block, x, attn_mask)
        return self._turned(x)

    def forward_intermediates(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        indices: int | list[int] | None = None,
        stop_early: bool = False,
    ) -> tuple[Tensor, list[Tensor]]:
        """The result, and the outputs of the chosen blocks; see ``feature_take_indices`` for ``indices``."""
        chosen, last = feature_take_indices(len(self.resblocks), indices)
        x = self._turned(x)
        intermediates = []
        for number, block in enumerate(self.resblocks):
            if stop_early and number > last:
                break
            x = self._block(block, x, attn_mask)
            if number in chosen:
                intermediates.append(self._turned(x))
        return self._turned(x), intermediates

    def prune_intermediate_layers(self, indices: int | list[int] = 1) -> list[int]:
        """Remove the blocks after the last of ``indices``; gives the chosen numbers."""
        chosen, last = feature_take_indices(len(self.resblocks), indices)
        self.resblocks = self.resblocks[: last + 1]
        return chosen


class Transformer(_Stack):
    """Blocks of one kind; ``block_type`` None takes "custom" where an option needs it (see ``CustomResidualAttentionBlock``)."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float = 4.0,
        ls_init_value: float | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] = LayerNorm,
        batch_first: bool = True,
        block_type: str | None = None,
        qk_norm: bool = False,
        scaled_cosine_attn: bool = False,
        scale_heads: bool = False,
        scale_attn_inner: bool = False,
        scale_attn: bool = False,
        scale_fc: bool = False,
    ) -> None:
        super().__init__(width, layers, batch_first)
        options = {
            "qk_norm": qk_norm, "scale_cosine_attn": scaled_cosine_attn, "scale_heads": scale_heads,
            "scale_attn_inner": scale_attn_inner, "scale_attn": scale_attn, "scale_fc": scale_fc,
        }  # fmt: skip
        shared: dict[str, Any] = {"ls_init_value": ls_init_value, "act_layer": act_layer, "norm_layer": norm_layer}
        kind: type[nn.Module] = ResidualAttentionBlock
        if block_type == "custom" or (block_type is None and any(options.values())):
            kind, shared = CustomResidualAttentionBlock, shared | options
        elif any(options.values()):
            raise ValueError(
                f"block_type={block_type!r} was given with {[n for n in options if options[n]]}: only 'custom' has them."
            )
        self.resblocks = nn.ModuleList(
            kind(width, heads, mlp_ratio, **shared, batch_first=batch_first) for _ in range(layers)
        )


class CustomTransformer(_Stack):
    """A stack of ``block_types``, one name for all layers or one for each; only "CustomResidualAttentionBlock" is known."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float = 4.0,
        ls_init_value: float | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] = LayerNorm,
        batch_first: bool = True,
        block_types: str | Sequence[str] = "CustomResidualAttentionBlock",
    ) -> None:
        super().__init__(width, layers, batch_first)
        names = [block_types] * layers if isinstance(block_types, str) else list(block_types)
        if len(names) != layers or set(names) - {"CustomResidualAttentionBlock"}:
            raise ValueError(f"block_types {names} were given; expected {layers} times 'CustomResidualAttentionBlock'.")
        options: dict[str, Any] = {"ls_init_value": ls_init_value, "act_layer": act_layer, "norm_layer": norm_layer}
        self.resblocks = nn.ModuleList(
            CustomResidualAttentionBlock(width, heads, mlp_ratio, **options, batch_first=batch_first) for _ in names
        )
