"""Freezing a tower but for its last groups of layers (Zhai et al. 2022, "LiT"), counted as open_clip's trainer counts them.

Group by group: embeddings; each block, the last together with the norm after it; projection or pooling. Only which parameters
get gradients is decided here.
"""

from __future__ import annotations

from torch import nn

from diptych.models._base import Tower

LAST_NORMS = ("ln_post", "ln_final", "norm")


def parameter_groups(tower: Tower) -> list[list[nn.Parameter]]:
    """The parameters of a tower from its input on, in groups."""
    blocks = tower.blocks()
    block_of = {id(item): number for number, block in enumerate(blocks, 1) for item in block.parameters()}
    groups: list[list[nn.Parameter]] = [[] for _ in range(len(blocks) + 2)]
    inside = False
    for name, parameter in tower.named_parameters():
        number = block_of.get(id(parameter))
        inside = inside or number is not None
        if number is None:
            after = len(blocks) if name.partition(".")[0] in LAST_NORMS else len(blocks) + 1
            number = after if inside else 0
        groups[number].append(parameter)
    return [group for group in groups if group]


def lock_all_but(tower: Tower, unlocked: int) -> None:
    """Freeze the tower, but for its last ``unlocked`` groups."""
    tower.requires_grad_(False)
    groups = parameter_groups(tower)
    for group in groups[max(0, len(groups) - unlocked) :]:
        for parameter in group:
            parameter.requires_grad_(True)
