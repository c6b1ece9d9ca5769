"""open_clip's ``hf_model``: the poolers of text towers of transformers. The towers themselves, ``HFTextEncoder``, are refused."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diptych.open_clip._absent import HFTextEncoder
from diptych.open_clip.hf_configs import arch_dict

__all__ = [
    "ClsLastHiddenStatePooler",
    "ClsPooler",
    "HFTextEncoder",
    "MaxPooler",
    "MeanPooler",
    "arch_dict",
    "register_pooler",
]

Pooler = TypeVar("Pooler", bound=type)
_POOLERS: dict[str, type] = {}


def register_pooler(cls: Pooler) -> Pooler:
    """A decorator that lists a pooler by its class name in snake case."""
    _POOLERS[re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()] = cls
    return cls


@register_pooler
class MeanPooler(nn.Module):
    """The mean of the tokens that are no padding."""

    def forward(self, x: Any, attention_mask: Tensor) -> Tensor:
        """``x.last_hidden_state`` [B, L, D] and a mask [B, L] of 1 and 0 -> [B, D]."""
        total = (x.last_hidden_state * attention_mask.unsqueeze(-1)).sum(dim=1)
        return total / attention_mask.sum(-1, keepdim=True)  # type: ignore[no-any-return]


@register_pooler
class MaxPooler(nn.Module):
    """The largest values of the tokens that are no padding.

    open_clip's hides what is no padding instead, by a slip: its values are minus infinity for texts that fill the context.
    """

    def forward(self, x: Any, attention_mask: Tensor) -> Tensor:
        """``x.last_hidden_state`` [B, L, D] and a mask [B, L] of 1 and 0 -> [B, D]."""
        hidden = attention_mask.unsqueeze(-1) == 0
        return x.last_hidden_state.masked_fill(hidden, -torch.inf).amax(dim=1)  # type: ignore[no-any-return]


@register_pooler
class ClsPooler(nn.Module):
    """The first token, or what the tower's own pooler makes of it where there is one."""

    def __init__(self, use_pooler_output: bool = True) -> None:
        super().__init__()
        self.cls_token_position = 0
        self.use_pooler_output = use_pooler_output

    def forward(self, x: Any, attention_mask: Tensor) -> Tensor:
        """[B, D]; the mask is not needed."""
        del attention_mask
        pooled = getattr(x, "pooler_output", None)
        if self.use_pooler_output and pooled is not None:
            return pooled  # type: ignore[no-any-return]
        return x.last_hidden_state[:, self.cls_token_position]  # type: ignore[no-any-return]


@register_pooler
class ClsLastHiddenStatePooler(nn.Module):
    """The first token of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token_position = 0

    def forward(self, x: Any, attention_mask: Tensor) -> Tensor:
        """[B, D]; the mask is not needed."""
        del attention_mask
        return x.last_hidden_state[:, self.cls_token_position]  # type: ignore[no-any-return]
