"""Position tables for another image size or context length: interpolated, as every system does, and for ResNets too.

CLIP's grids are resized bicubically with antialiasing, and the class token's row stays; SigLIP's bilinearly, as big_vision
does; a text's table linearly. A network so changed is a start for training, and a little worse until it is trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.errors import WeightsError
from diptych.models import ModelConfig
from diptych.models.resnet import STRIDE, ResNetConfig
from diptych.models.siglip import SiglipConfig
from diptych.models.vit import VitConfig

TABLES = {
    "vit": "image.positional_embedding",
    "resnet": "image.pool.positional_embedding",
    "siglip": "image.positional_embedding",
}


def grid_side(config: ModelConfig) -> int:
    """Positions along a side of the image tower's grid. Raises WeightsError for a family whose grid is unknown."""
    vision = config.vision
    if isinstance(vision, VitConfig | SiglipConfig):
        return vision.image_size // vision.patch_size
    if isinstance(vision, ResNetConfig):
        return vision.image_size // STRIDE
    raise WeightsError(
        f"{config.name}: positions of the family {vision.family!r} cannot be resized; load it at its size."
    )


def resize_positions(tensors: dict[str, Tensor], stored: ModelConfig, target: ModelConfig) -> dict[str, Tensor]:
    """Our tensors of ``stored`` with position tables of the sizes that ``target`` has."""
    resized = dict(tensors)
    if stored.vision.image_size != target.vision.image_size:
        old, new = grid_side(stored), grid_side(target)
        if old != new:
            name = TABLES[target.vision.family]
            resized[name] = image_positions(tensors[name], old, new, target.vision.family)
    before, after = stored.text.context_length, target.text.context_length
    if before != after:
        name = "text.positional_embedding"
        resized[name] = text_positions(tensors[name], after)
    return resized


def image_positions(table: Tensor, old: int, new: int, family: str) -> Tensor:
    """[extra + old * old, D] -> [extra + new * new, D], where extra is the class token's row, if there is one.

    Raises WeightsError for a table of another number of rows.
    """
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
