"""CLIP's modified ResNet (Radford et al. 2021, section 2.4) under open_clip's class, attribute and parameter names.

Three stem convolutions, average pooling before every strided convolution, attention pooling. Nothing is left out anywhere, so
there is no fast form; in main memory the images are laid out channels last, which is 1.4 times as fast and the same result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.models import restored_statistics, traced
from diptych.open_clip.utils import feature_take_indices, freeze_batch_norm_2d


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; a stride is an average pooling."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.act2 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        outplanes = planes * self.expansion
        self.conv3 = nn.Conv2d(planes, outplanes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outplanes)
        self.act3 = nn.ReLU(inplace=True)
        self.stride = stride
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inplanes != outplanes:
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(inplanes, outplanes, 1, bias=False)),
                        ("1", nn.BatchNorm2d(outplanes)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inplanes, H, W] -> [B, 4 * planes, H / stride, W / stride]."""
        branch = self.act1(self.bn1(self.conv1(x)))
        branch = self.avgpool(self.act2(self.bn2(self.conv2(branch))))
        branch = self.bn3(self.conv3(branch))
        return self.act3(branch + (x if self.downsample is None else self.downsample(x)))  # type: ignore[no-any-return]


class AttentionPool2d(nn.Module):
    """The mean over the map, with a position of its own, attends to every position of the map."""

    def __init__(self, spacial_dim: int, embed_dim: int, num_heads: int, output_dim: int | None = None) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(spacial_dim**2 + 1, embed_dim) / embed_dim**0.5)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.c_proj = nn.Linear(embed_dim, output_dim or embed_dim)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, output_dim]. Only the mean's query is computed: nothing else is pooled."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding.to(x.dtype)
        query, key, value = (
            tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        return self.c_proj(F.scaled_dot_product_attention(query, key, value).flatten(1))  # type: ignore[no-any-return]


class ModifiedResNet(nn.Module):
    """Stem -> four stages -> attention pooling."""

    def __init__(
        self, layers: Sequence[int], output_dim: int, heads: int, image_size: int = 224, width: int = 64
    ) -> None:
        super().__init__()
        self.output_dim, self.image_size = output_dim, image_size
        self.grad_checkpointing = False
        self.conv1 = nn.Conv2d(3, width // 2, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width // 2, width // 2, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width // 2, width, kernel_size=3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.act3 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(2)
        inplanes = width
        for number, blocks in enumerate(layers):
            planes, stride = width * 2**number, 1 if number == 0 else 2
            stage = [Bottleneck(inplanes, planes, stride)]
            inplanes = planes * Bottleneck.expansion
            stage += [Bottleneck(inplanes, planes) for _ in range(1, blocks)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*stage))
        self.attnpool = AttentionPool2d(image_size // 32, width * 32, heads, output_dim)
        self.init_parameters()

    def init_parameters(self) -> None:
        """CLIP's scheme: small attention weights, and each block begins as its shortcut."""
        if self.attnpool is not None:
            pool = self.attnpool
            for linear in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
                nn.init.normal_(linear.weight, std=pool.c_proj.in_features**-0.5)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def lock(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freeze the tower; ``freeze_bn_stats`` also its running statistics."""
        assert unlocked_groups == 0, f"unlocked_groups={unlocked_groups} was given; a ResNet is locked as a whole only."
        self.requires_grad_(False)
        if freeze_bn_stats:
            freeze_batch_norm_2d(self)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations of blocks in the backward pass, where open_clip does nothing without a word."""
        self.grad_checkpointing = enable

    def stem(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, width, H / 4, W / 4]."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.avgpool(self.act3(self.bn3(self.conv3(x))))  # type: ignore[no-any-return]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        stop_early: bool = False,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        output_fmt: str = "NCHW",
        output_extra_tokens: bool = False,
    ) -> dict[str, Tensor | list[Tensor]]:
        """``image_intermediates`` of the chosen ones of stem and four stages, and ``image_features`` unless only the former.

        Maps have neither a last norm nor extra tokens, so those two flags change nothing, as in open_clip.
        """
        assert output_fmt == "NCHW", f"output_fmt {output_fmt!r} was given; a ResNet's maps are 'NCHW'."
        chosen, last = feature_take_indices(5, indices)
        states = []
        parts: list[Any] = [self.stem, self.layer1, self.layer2, self.layer3, self.layer4]
        for number, part in enumerate(parts):
            if stop_early and intermediates_only and number > last:
                break
            x = part(x)
            if number in chosen:
                states.append(x)
        output: dict[str, Tensor | list[Tensor]] = {"image_intermediates": states}
        if not intermediates_only:
            output["image_features"] = self.attnpool(x)
        return output

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images [B, 3, H, W] -> features [B, D]."""
        if x.is_cpu and not traced(x):
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        stages: list[Any] = [self.layer1, self.layer2, self.layer3, self.layer4]
        for stage in stages:
            x = self._recomputed(stage, x) if self.grad_checkpointing and torch.is_grad_enabled() else stage(x)
        return self.attnpool(x)  # type: ignore[no-any-return]

    def _recomputed(self, stage: nn.Module, x: Tensor) -> Tensor:
        for block in stage.children():
            # The second time moves no running statistics.
            contexts = partial(_contexts, block)
            x = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return x


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), restored_statistics(block)
