"""CLIP's text tower: a causal transformer over BPE ids, pooled at the end token (Radford et al. 2021).

Runs in the form of the plan that it is given, else in one that suits where the ids are (see ``_causal``). Where somebody looks
inside (``_observed``) it runs padded, every token in full: a hook would see other shapes, and a recorded graph would know the
lengths of one batch only. Not a bidirectional encoder, and no padding mask is ever needed.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from diptych.models._base import TOWERS, lengths_of
from diptych.models._causal import CausalPlan, causal_plan, unplanned
from diptych.models._cpu_attention import in_main_memory
from diptych.models._observed import hooked, traced
from diptych.models._packing import PaddedCausal
from diptych.models._shared_prefix import PrefixSharing
from diptych.models._text import BlockText
from diptych.text import check_lengths
from diptych.types import Encoded, SharedPrefixes, TextPlan


@TOWERS.register("transformer")
class Transformer(BlockText):
    """Ids -> blocks -> the end token -> projection. ``layout`` is "auto", or "padded" for the reference implementation."""

    shares_prefixes = True
    takes_plans = True
    layout: Literal["auto", "padded"] = "auto"

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        return_tokens: bool = False,
        seeds: Tensor | None = None,
        prefix: SharedPrefixes | None = None,
        *,
        plan: TextPlan | None = None,
    ) -> Encoded:
        """Ids [B, L] of ``lengths`` [B] (None: up to the end token) -> pooled [B, D]; tokens [B, L, width] after the last norm.

        ``plan`` says how these ids are laid out. Without it ``prefix`` computes common beginnings once, in main memory.
        Elsewhere neither lengths nor prefixes are checked, since that would wait for the device, and the features are the same.
        Nothing here draws, so ``seeds`` changes nothing. Raises ConfigError when L is longer than the context, for a plan of
        other ids, for lengths outside of 1 to L, and for texts of one prefix that begin differently.
        """
        self.check_ids(tokens)
        if lengths is None:
            lengths = lengths_of(tokens, self.config.text.searched_end)
        recording = traced(tokens)
        in_full = return_tokens or recording or hooked(*self.children())
        if in_full or self.layout == "padded" or tokens.shape[0] == 0:
            if not recording:
                check_lengths(lengths, tokens.shape[1])
                if tokens.shape[0] and (prefix is not None or plan is not None):
                    # The whole texts are computed, but a wrong prefix or plan is an error.
                    _form(tokens, lengths, prefix, plan)
            return self._padded(tokens, lengths, in_full, return_tokens)
        form = _form(tokens, lengths, prefix, plan)
        x = form.embedded(tokens, self.token_embedding, self.positional_embedding)
        state = form.unsorted(self.run(x, form, only_pooled=True))
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


def _form(tokens: Tensor, lengths: Tensor, prefix: SharedPrefixes | None, plan: TextPlan | None) -> CausalPlan:
    """The form of these texts, by their plan, by what they share, or by where they are. Raises ConfigError."""
    if plan is not None:
        return causal_plan(plan, tokens)
    if prefix is not None and in_main_memory(tokens):
        return PrefixSharing.of(tokens, lengths, prefix)
    return unplanned(lengths, tokens.shape[1])
