"""open_clip's ``convert``: state dicts of other programs. big_vision's and MobileCLIP's are refused, with a line.

What Diptych itself can convert is in ``diptych.weights``.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from diptych.errors import ConfigError
from diptych.open_clip._absent import load_big_vision_weights

__all__ = ["convert_mobile_clip_state_dict", "convert_state_dict", "load_big_vision_weights"]

# A convolution that Apple's first release of MobileCLIP has, and no other: of s1 and s2, and of b.
APPLE = (
    "image_encoder.model.patch_embed.0.rbr_conv.0.conv.weight",
    "image_encoder.model.patch_emb.0.block.conv.weight",
)


def convert_mobile_clip_state_dict(model: nn.Module, state_dict: dict[str, Any], fastvit: bool = True) -> NoReturn:
    """Refused: MobileCLIP's image towers are timm's."""
    del model, state_dict, fastvit
    raise ConfigError("the weights are MobileCLIP's, whose image towers are timm's; those are not here: use open_clip.")


def convert_state_dict(model: nn.Module, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The same state dict: every other format is read by its own names. Raises ConfigError for MobileCLIP's."""
    if any(name in state_dict for name in APPLE):
        convert_mobile_clip_state_dict(model, state_dict)
    return state_dict
