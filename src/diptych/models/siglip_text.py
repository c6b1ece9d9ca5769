"""The text tower of SigLIP, SigLIP 2 and CLIPA: every token attends to every other, padding included, and the last is pooled.

Trained so, it must be run so: a shorter batch is padded to the full context here, whatever its maker padded it to. Not
causal, so nothing can be packed and no prefix shared; ``siglip`` is the image tower.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.errors import ConfigError
from diptych.models._base import TOWERS
from diptych.models._observed import observed, traced
from diptych.models._packing import LastTokenPool
from diptych.models._text import BlockText
from diptych.text import check_lengths
from diptych.types import Encoded, SharedPrefixes


@TOWERS.register("siglip_text")
class SiglipText(BlockText):
    """Ids -> blocks -> norm -> the last token -> projection."""

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        return_tokens: bool = False,
        seeds: Tensor | None = None,
        prefix: SharedPrefixes | None = None,
    ) -> Encoded:
        """Ids [B, L] -> pooled [B, D]; tokens [B, context, width] after the last norm.

        ``lengths`` says which tokens are real, and changes no feature; without it all are. Nothing here draws, so ``seeds``
        changes nothing. Raises ConfigError when L is longer than the context, and for a ``prefix``.
        """
        self.check_ids(tokens)
        if prefix is not None:
            raise ConfigError("a prefix was given; this tower's tokens attend to what follows, so none can be shared.")
        context = self.config.text.context_length
        tokens = F.pad(tokens, (0, context - tokens.shape[1]), value=self.config.text.pad_id)
        x = self.token_embedding(tokens) + self.positional_embedding
        in_full = return_tokens or observed(self, tokens)
        x = self.run(x, LastTokenPool(), only_pooled=not in_full)
        state = x[:, -1] if in_full else x
        pooled = self.projection(state)
        if lengths is not None and not traced(tokens):
            check_lengths(lengths, context)
        if not return_tokens:
            return Encoded(pooled, state)
        real = torch.ones_like(tokens, dtype=torch.bool)
        if lengths is not None:
            real = torch.arange(context, device=tokens.device) < lengths[:, None]
        return Encoded(pooled, state, x, real)
