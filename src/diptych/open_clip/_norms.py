"""Small modules under open_clip's class names: norms, activations, layer scale, patch dropout.

What each computes is the papers'; the names and parameters are open_clip's, so that state dicts and ``isinstance`` fit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNormFp32(nn.LayerNorm):
    """Layer norm computed in fp32 whatever the input is, and given back in the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends in the normalized one."""
        return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm that gives back the input's dtype, also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that ends in the normalized one."""
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), which OpenAI's weights were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    """A learned factor for each channel of a residual branch (Touvron et al. 2021)."""

    def __init__(self, dim: int, init_values: float = 1e-5, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace
        self.gamma = nn.Parameter(torch.full((dim,), float(init_values)))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> the same shape."""
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


class PatchDropout(nn.Module):
    """Leaves out a random share ``prob`` of the patches while training (Li et al. 2023, "FLIP").

    The draw is one normal number for each patch from torch's CPU generator, as in open_clip, so that equal seeds choose equal
    patches in both. ``diptych train`` has its own, which does not depend on the split into batches.
    """

    def __init__(self, prob: float = 0.5, exclude_first_token: bool = True) -> None:
        super().__init__()
        if not 0 <= prob < 1:
            raise ValueError(f"a share of patches of {prob} was given; expected at least 0 and below 1.")
        self.prob = prob
        self.exclude_first_token = exclude_first_token

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> [B, fewer, width]; unchanged in evaluation mode."""
        if not self.training or not self.prob:
            return x
        # Without the exclusion open_clip keeps no class token apart: the choice is among all tokens.
        first, patches = (x[:, :1], x[:, 1:]) if self.exclude_first_token else (x[:, :0], x)
        batch, count, width = patches.shape
        remaining = max(1, int(count * (1 - self.prob)))
        chosen = torch.randn(batch, count).topk(remaining, dim=-1).indices.to(x.device)
        # Distinct indices, so the backward pass of gather adds nothing twice.
        return torch.cat([first, patches.gather(1, chosen[..., None].expand(-1, -1, width))], dim=1)
