"""Fixed sine and cosine positions of a grid (Chen et al. 2021, MoCo v3), in float64 numpy arrays.

``interpolate_pos_embed`` belongs to MAE's models, not to CLIP's: it resizes the positions of such a checkpoint in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def get_1d_sincos_pos_embed_from_grid(embed_dim: int, pos: NDArray[Any]) -> NDArray[Any]:
    """Positions of any shape, M in all -> [M, embed_dim]: sines in the first half, cosines in the second."""
    if embed_dim % 2:
        raise ValueError(f"embed_dim {embed_dim} was given; expected an even number.")
    half = embed_dim // 2
    frequencies = 10000.0 ** -(np.arange(half, dtype=float) / half)
    angles = np.outer(pos.reshape(-1), frequencies)
    return np.hstack([np.sin(angles), np.cos(angles)])


def get_2d_sincos_pos_embed_from_grid(embed_dim: int, grid: NDArray[Any]) -> NDArray[Any]:
    """Two coordinates ``grid[0]``, ``grid[1]`` of M points -> [M, embed_dim], half for each coordinate."""
    return np.hstack([get_1d_sincos_pos_embed_from_grid(embed_dim // 2, axis) for axis in (grid[0], grid[1])])


def get_2d_sincos_pos_embed(embed_dim: int, grid_size: int, cls_token: bool = False) -> NDArray[Any]:
    """[grid_size ** 2, embed_dim], the horizontal coordinate first; with ``cls_token`` after a row of zeros."""
    steps = np.arange(grid_size, dtype=np.float32)
    vertical, horizontal = np.meshgrid(steps, steps, indexing="ij")
    table = get_2d_sincos_pos_embed_from_grid(embed_dim, np.stack([horizontal, vertical]))
    return np.vstack([np.zeros((1, embed_dim)), table]) if cls_token else table


def interpolate_pos_embed(model: Any, checkpoint_model: dict[str, Tensor]) -> None:
    """Resize ``checkpoint_model["pos_embed"]`` [1, extra + N, D] to the grid of ``model``, bicubically, in place of the entry."""
    table = checkpoint_model.get("pos_embed")
    if table is None:
        return
    patches = model.patch_embed.num_patches
    extra = model.pos_embed.shape[-2] - patches
    before, after = (round(count**0.5) for count in (table.shape[-2] - extra, patches))
    if before == after:
        return
    grid = table[:, extra:].unflatten(1, (before, before)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False)
    checkpoint_model["pos_embed"] = F.pad(grid.flatten(2).transpose(1, 2), (0, 0, extra, 0))
    checkpoint_model["pos_embed"][:, :extra] = table[:, :extra]
