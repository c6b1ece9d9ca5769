"""CLIP's modified ResNet (Radford et al. 2021, section 2.4): a three-convolution stem, anti-aliased strides, attention pooling.

Differences from the ResNet of He et al.: three 3x3 convolutions in place of one 7x7, average pooling before every strided
convolution, and a last pooling in which the mean of the map attends to all of its positions. Has batch norm: statistics are
per process.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.models._base import TOWERS, ImageTower
from diptych.models._config import ModelConfig, VisionConfig
from diptych.models._layers import Linear, attention
from diptych.models._statistics import restored_statistics
from diptych.types import Encoded

EXPANSION = 4
STRIDE = 32


@dataclass(frozen=True)
class ResNetConfig(VisionConfig):
    """CLIP's modified ResNet: ``layers`` blocks in each of four stages, ``width`` channels after the stem."""

    layers: tuple[int, int, int, int]
    heads: int
    family: str = field(default="resnet", kw_only=True)

    def problem(self, embed_dim: int) -> str:
        """An image that the strides do not divide, heads that do not divide the pooled width."""
        if self.image_size % STRIDE:
            return f"image_size {self.image_size} is no multiple of {STRIDE}, as a ResNet needs."
        if self.width * STRIDE % self.heads:
            return f"the attention pool's width {self.width * STRIDE} is no multiple of its {self.heads} heads."
        return ""


def convolution(inward: int, outward: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inward, outward, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(outward), nn.ReLU()
    )


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; a stride is an average pooling, so that nothing aliases."""

    def __init__(self, inward: int, planes: int, stride: int) -> None:
        super().__init__()
        self.reduce = convolution(inward, planes, 1)
        self.spatial = convolution(planes, planes, 3)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.expand = nn.Sequential(
            nn.Conv2d(planes, planes * EXPANSION, 1, bias=False), nn.BatchNorm2d(planes * EXPANSION)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inward != planes * EXPANSION:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
                nn.Conv2d(inward, planes * EXPANSION, 1, bias=False),
                nn.BatchNorm2d(planes * EXPANSION),
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inward, H, W] -> [B, 4 * planes, H / stride, W / stride]."""
        return torch.relu(self.expand(self.pool(self.spatial(self.reduce(x)))) + self.shortcut(x))


class Stage(nn.Sequential):
    """Blocks of one resolution, the first of which may halve it."""

    def forward(self, x: Tensor, checkpointing: bool = False) -> Tensor:
        """[B, C, H, W] through every block; ``checkpointing`` computes each again in the backward pass."""
        for block in self:
            x = _checkpointed(block, x) if checkpointing else block(x)
        return x


class AttentionPool(nn.Module):
    """The mean over the map, with a position of its own, attends to every position of the map."""

    def __init__(self, side: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.empty(side * side + 1, width))
        self.q = Linear(width, width)
        self.k = Linear(width, width)
        self.v = Linear(width, width)
        self.out = Linear(width, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C], before the projection ``out``."""
        positions = x.flatten(2).transpose(1, 2)
        positions = torch.cat([positions.mean(dim=1, keepdim=True), positions], dim=1) + self.positional_embedding.to(
            x.dtype
        )
        pooled = attention(self.q(positions[:, :1]), self.k(positions), self.v(positions), self.heads)
        return pooled[:, 0]


@TOWERS.register("resnet")
class ResNet(ImageTower):
    """Stem -> four stages -> attention pooling."""

    Config = ResNetConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        vision = config.vision
        assert isinstance(vision, ResNetConfig)
        width = vision.width
        self.stem = nn.Sequential(
            convolution(3, width // 2, 3, stride=2),
            convolution(width // 2, width // 2, 3),
            convolution(width // 2, width, 3),
            nn.AvgPool2d(2),
        )
        stages, inward = [], width
        for number, blocks in enumerate(vision.layers):
            planes, stride = width * 2**number, 1 if number == 0 else 2
            stages.append(
                Stage(
                    *(Bottleneck(inward if first else planes * EXPANSION, planes, stride if first else 1)
                      for first in [index == 0 for index in range(blocks)])
                )
            )  # fmt: skip
            inward = planes * EXPANSION
        self.stages = nn.ModuleList(stages)
        self.pool = AttentionPool(vision.image_size // STRIDE, inward, vision.heads, config.embed_dim)

    def blocks(self) -> list[nn.Module]:
        """The units of sharding and of activation checkpointing."""
        return [block for stage in self.stages for block in stage]  # type: ignore[attr-defined]

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """[B, N, 32 * width] -> [B, N, D]: each position through the pool's value and output projections.

        As Zhou et al. 2022 ("Extract free dense labels from CLIP") take dense features from CLIP's ResNets.
        """
        return self.pool.out(self.pool.v(tokens))

    def forward(self, images: Tensor, return_tokens: bool = False, seeds: Tensor | None = None) -> Encoded:
        """uint8 or normalized [B, 3, H, W] -> pooled [B, D]; tokens [B, N, 32 * width] are the positions of the last map.

        Nothing here draws, so ``seeds`` changes nothing.
        """
        # Channels last: 1.4x as fast through the convolutions of a CPU, and the layout that tensor cores want.
        x = self.stem(self.normalize(images).contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            x = stage(x, self.checkpointing and self.training)
        state = self.pool(x)
        pooled = self.pool.out(state)
        if not return_tokens:
            return Encoded(pooled, state)
        tokens = x.flatten(2).transpose(1, 2)
        return Encoded(pooled, state, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=x.device))

    @torch.no_grad()
    def init_weights(self) -> None:
        """CLIP's scheme: torch's own for convolutions, each block begins as its shortcut, small attention weights."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()
        for block in self.blocks():
            nn.init.zeros_(block.expand[1].weight)  # type: ignore[union-attr, index, arg-type]
        width = self.pool.q.in_features
        nn.init.normal_(self.pool.positional_embedding, std=width**-0.5)
        for linear in (self.pool.q, self.pool.k, self.pool.v, self.pool.out):
            nn.init.normal_(linear.weight, std=width**-0.5)
            nn.init.zeros_(linear.bias)


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """The block's output, computed again in the backward pass; that second time moves no running statistics."""

    def contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        return contextlib.nullcontext(), restored_statistics(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)  # type: ignore[no-any-return]
