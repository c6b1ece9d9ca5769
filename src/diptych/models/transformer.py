"""CLIP's text tower: a causal transformer over BPE ids, pooled at the end token (Radford et al. 2021).

Runs packed: only real tokens are computed (see ``_packing``). Not a bidirectional encoder, and no padding mask is ever needed.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.models._base import TOWERS, SharedPrefixes, lengths_of
from diptych.models._packing import PackedCausal, PaddedCausal, lengths_on_cpu
from diptych.models._shared_prefix import PrefixSharing
from diptych.models._text import BlockText
from diptych.types import Encoded


@TOWERS.register("transformer")
class Transformer(BlockText):
    """Ids -> blocks -> the end token -> projection. ``layout`` is "packed", or "padded" for the reference implementation."""

    shares_prefixes = True
    layout: Literal["packed", "padded"] = "packed"

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        return_tokens: bool = False,
        seeds: Tensor | None = None,
        prefix: SharedPrefixes | None = None,
    ) -> Encoded:
        """Ids [B, L] of ``lengths`` [B] (None: up to the end token) -> pooled [B, D]; tokens [B, L, width] after the last norm.

        ``prefix`` computes common beginnings once. Nothing here draws, so ``seeds`` changes nothing. Raises ConfigError when L
        is longer than the context, for lengths outside of 1 to L, and for texts of one prefix that begin differently.
        """
        self.check_ids(tokens)
        if lengths is None:
            lengths = lengths_of(tokens, self.config.text.end_id)
        if self.layout == "padded" or return_tokens:
            if prefix is not None:
                PrefixSharing.of(
                    tokens, lengths, prefix
                )  # the whole texts are computed, but a wrong prefix is an error
            return self._padded(tokens, lengths, return_tokens)
        plan: PackedCausal | PrefixSharing
        plan = (
            PackedCausal.of(lengths, tokens.shape[1]) if prefix is None else PrefixSharing.of(tokens, lengths, prefix)
        )
        # Not by indexing the parameter: the backward pass of that adds repeated positions in no fixed order.
        positions = F.embedding(plan.positions, self.positional_embedding)
        x = self.token_embedding(tokens.flatten()[plan.gather]) + positions
        state = plan.unsorted(self.run(x, plan, only_pooled=True))
        return Encoded(self.projection(state), state)

    def _padded(self, tokens: Tensor, lengths: Tensor, return_tokens: bool) -> Encoded:
        lengths_on_cpu(lengths, tokens.shape[1])
        plan = PaddedCausal(lengths)
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.run(x, plan, only_pooled=not return_tokens)
        if not return_tokens:
            return Encoded(self.projection(x), x)
        real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        state = plan.pooled(x)
        return Encoded(self.projection(state), state, x, real)
