"""CLIP's text tower: a causal transformer over BPE ids, pooled at the end token (Radford et al. 2021).

Runs packed: only real tokens are computed (see ``_packing``). Where somebody looks inside (``_observed``) it runs padded, every
token in full: a hook would see other shapes, and a recorded graph would know the lengths of one batch only. Not a
bidirectional encoder, and no padding mask is ever needed.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.models._base import TOWERS, SharedPrefixes, lengths_of
from diptych.models._observed import hooked, traced
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
            lengths = lengths_of(tokens, self.config.text.searched_end)
        recording = traced(tokens)
        in_full = return_tokens or recording or hooked(*self.children())
        if in_full or self.layout == "padded" or tokens.shape[0] == 0:
            if not recording:
                lengths_on_cpu(lengths, tokens.shape[1])
                if prefix is not None and tokens.shape[0]:
                    # The whole texts are computed, but a wrong prefix is an error.
                    PrefixSharing.of(tokens, lengths, prefix)
            return self._padded(tokens, lengths, in_full, return_tokens)
        plan: PackedCausal | PrefixSharing
        plan = (
            PackedCausal.of(lengths, tokens.shape[1]) if prefix is None else PrefixSharing.of(tokens, lengths, prefix)
        )
        # Not by indexing the parameter: the backward pass of that adds repeated positions in no fixed order.
        positions = F.embedding(plan.positions, self.positional_embedding)
        x = self.token_embedding(tokens.flatten()[plan.gather]) + positions
        state = plan.unsorted(self.run(x, plan, only_pooled=True))
        return Encoded(self.projection(state), state)

    def _padded(self, tokens: Tensor, lengths: Tensor, in_full: bool, return_tokens: bool) -> Encoded:
        """Padding included; ``in_full`` computes every token in the last block too."""
        plan = PaddedCausal(lengths)
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.run(x, plan, only_pooled=not in_full)
        state = plan.pooled(x) if in_full else x
        if not return_tokens:
            return Encoded(self.projection(state), state)
        real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        return Encoded(self.projection(state), state, x, real)
