"""Position tables for another size of picture or context: interpolated, as every system does, and for ResNets too.

CLIP's grids are resized bicubically with antialiasing and keep the class token's row; SigLIP's bilinearly, as big_vision
does; a text's table linearly. A network so changed is a start for training, and a little worse until it is trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.errors import WeightsError
from diptych.models import ModelConfig

GRIDS = {
    "vit": "image.positional_embedding",
    "resnet": "image.pool.positional_embedding",
    "siglip": "image.positional_embedding",
}


def grid_of(config: ModelConfig) -> int:
    """Places along a side of the image tower's grid."""
    vision = config.vision
    return vision.image_size // (32 if vision.family == "resnet" else vision.patch_size)  # type: ignore[union-attr]


def fitted(tensors: dict[str, Tensor], found: ModelConfig, wanted: ModelConfig) -> dict[str, Tensor]:
    """Our tensors of ``found`` with position tables of the sizes that ``wanted`` has."""
    changed = dict(tensors)
    old, new = grid_of(found), grid_of(wanted)
    if old != new:
        name = GRIDS[wanted.vision.family]
        changed[name] = image_positions(tensors[name], old, new, wanted.vision.family)
    before, after = found.text.context_length, wanted.text.context_length
    if before != after:
        name = "text.positional_embedding"
        changed[name] = text_positions(tensors[name], after)
    return changed


def image_positions(table: Tensor, old: int, new: int, family: str) -> Tensor:
    """[extra + old * old, D] -> [extra + new * new, D], where extra is the class token's row, if there is one."""
    extra = table.shape[0] - old * old
    if extra not in (0, 1):
        raise WeightsError(f"a position table of {table.shape[0]} rows is no square grid of side {old}.")
    first, grid = table[:extra], table[extra:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    if family == "siglip":
        grid = F.interpolate(grid, size=(new, new), mode="bilinear", align_corners=False)
    else:
        grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, grid.permute(0, 2, 3, 1).reshape(new * new, -1).to(table.dtype)])


def text_positions(table: Tensor, length: int) -> Tensor:
    """[old, D] -> [length, D], linearly, without antialiasing."""
    rows = table.float().T[None]
    return F.interpolate(rows, size=length, mode="linear", align_corners=False)[0].T.contiguous().to(table.dtype)
