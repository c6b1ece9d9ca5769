"""What objectives ask about the tokens of towers: how wide they are. No loss and no head."""

from __future__ import annotations

import torch

from diptych.errors import ConfigError
from diptych.models import TwoTower


def image_token_width(model: TwoTower, purpose: str) -> int:
    """The width of the image tower's tokens, asked of the tower itself with one black image.

    ``purpose`` ends the message of the ConfigError that is raised for a tower without tokens, as in "superclip classifies by".
    """
    size, device = model.config.vision.image_size, model.logit_scale.device
    black = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
    modes = [(module, module.training) for module in model.modules()]
    with torch.no_grad():
        tokens = model.eval().image(black, return_tokens=True).tokens
    for module, training in modes:  # each its own: a locked tower stays in evaluation mode
        module.training = training
    if tokens is None:
        raise ConfigError(
            f"{model.config.name}: its image tower gives no tokens, which {purpose}; give another --model."
        )
    return int(tokens.shape[-1])
