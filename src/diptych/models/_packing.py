"""Which token attends to which where every token of a rectangle [B, L] is computed.

``FullAttention``   images: [B, N, D], every token attends to every token, the class token (index 0) is pooled.
``LastTokenPool``   SigLIP's texts: [B, L, D], every token attends to every token, the last is pooled.
``PaddedCausal``    texts: [B, L, D], causal, the end token is pooled; padding is computed and ignored. The reference
                    implementation of the forms in ``_causal`` and ``_shared_prefix``, which compute less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diptych.models._layers import attention, join_heads, scaled_dot_product, split_heads


class FullAttention:
    """Every token attends to every token; the first is pooled."""

    single_queries: ClassVar[bool] = True

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """[B, N, D] each."""
        return attention(query, key, value, heads)

    def attend_pooled(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """``query`` [B, D], keys and values [B, N, D] -> [B, D]."""
        return attention(query[:, None], key, value, heads)[:, 0]

    def pooled(self, tokens: Tensor) -> Tensor:
        """The class token."""
        return tokens[:, 0]


class LastTokenPool(FullAttention):
    """Every token attends to every token; the last is pooled."""

    def pooled(self, tokens: Tensor) -> Tensor:
        """The last token."""
        return tokens[:, -1]


@dataclass(frozen=True)
class PaddedCausal:
    """Causal sequences padded to one length; ``lengths`` int64 [B] counts real tokens, the last of which is pooled."""

    lengths: Tensor
    single_queries: ClassVar[bool] = True

    def attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """[B, L, D] each."""
        return attention(query, key, value, heads, causal=True)

    def attend_pooled(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """``query`` [B, D] of the end tokens, each attending to everything up to itself."""
        # The causal mask's row of each end token.
        mask = torch.arange(key.shape[1], device=key.device) < self.lengths[:, None]
        queries, keys, values = (split_heads(item, heads) for item in (query[:, None], key, value))
        return join_heads(scaled_dot_product(queries, keys, values, mask[:, None, None]))[:, 0]

    def pooled(self, tokens: Tensor) -> Tensor:
        """The end token of each sequence."""
        return tokens[torch.arange(tokens.shape[0], device=tokens.device), self.lengths - 1]
