"""What every tower promises: the contracts of image and text towers, and the registry of their families.

A family is one file of this folder: a tower class with its ``Config`` dataclass, registered under the file's name. This file
holds no architecture, and names none.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.models._config import ModelConfig, TextConfig, VisionConfig
from diptych.models._observed import recorded, traced
from diptych.models._pixels import holds_pixels
from diptych.registry import Registry
from diptych.types import Encoded, SharedPrefixes


class Tower(nn.Module):
    """What both towers share. A family gives ``blocks``, ``project_tokens``, ``forward`` and ``init_weights``."""

    checkpointing = False
    """Recompute the activations of blocks in the backward pass of training; set by ``checkpoint_activations``."""

    computes_as_stored = False
    """Compute in the type that the weights are stored in, whatever autocast is on around; set by ``TwoTower.cast_towers``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """``forward``, with the module's hooks."""
        if not self.computes_as_stored:
            return super().__call__(*inputs, **options)
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return super().__call__(*inputs, **options)

    def castable(self) -> dict[str, nn.Parameter]:
        """The parameters that may be stored in half precision, by name: all but those of batch norms, and single numbers.

        Kernels of batch normalization take half-precision maps with fp32 weights and statistics, and no other mixture.
        """
        norms = [item for item in self.modules() if isinstance(item, nn.modules.batchnorm._BatchNorm)]
        exact = {id(own) for norm in norms for own in norm.parameters()}
        return {name: item for name, item in self.named_parameters() if item.numel() > 1 and id(item) not in exact}

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, first to last: the units of sharding and of activation checkpointing."""
        raise NotImplementedError

    def linears(self) -> dict[str, nn.Linear]:
        """Every ``Linear`` of the tower by its dotted name: for adapters, tensor-parallel plans and quantization."""
        return {name: module for name, module in self.named_modules() if isinstance(module, nn.Linear)}

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute activations in the backward pass of training: less memory, more time, the same gradients."""
        self.checkpointing = on

    def compile_blocks(self, backend: str) -> None:
        """Compile each block with a backend of ``torch.compile``, when it is first called; names of parameters stay.

        The forward method, not the module: hooks of sharding run around a graph, and checkpointing calls it.
        """
        for block in self.blocks():
            setattr(block, "forward", torch.compile(block.forward, backend=backend))  # noqa: B010 - an instance's own method

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """``Encoded.tokens`` [B, N, width] into the embedding, [B, N, D]; not normalized."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Initialize every parameter, drawing from torch's generator."""
        raise NotImplementedError


class ImageTower(Tower):
    """An image tower; holds the mean and the standard deviation of its pixels."""

    Config: ClassVar[type[VisionConfig]]
    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.tensor(config.preprocess.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(config.preprocess.std).view(3, 1, 1))

    def forward(self, images: Tensor, return_tokens: bool = False, seeds: Tensor | None = None) -> Encoded:
        """uint8, or normalized floating-point, images [B, 3, H, W] -> ``Encoded``.

        ``seeds`` int64 [B]: every random draw of sample ``b`` is made from ``seeds[b]``, so that a second pass, another split
        into micro-batches or another number of ranks draws the same; None draws from torch's generator.
        """
        raise NotImplementedError

    def normalize(self, images: Tensor) -> Tensor:
        """Pixels, uint8 [B, 3, H, W], -> normalized; normalized floating-point ones as they are; in the dtype of the weights.

        Pixels that were cast to another type are pixels still. Raises ConfigError for another shape, and for values that are
        neither (``_pixels``); while a graph is recorded the type alone decides.
        """
        if not isinstance(images, Tensor):
            raise ConfigError(
                f"a {type(images).__name__} was given; expected images as a tensor, as preprocess gives them."
            )
        size = self.config.vision.image_size
        if images.ndim != 4 or (not recorded() and tuple(images.shape[1:]) != (3, size, size)):
            raise ConfigError(
                f"images of shape {list(images.shape)} were given; {self.config.name} takes [B, 3, {size}, {size}]."
            )
        dtype = next(self.parameters()).dtype
        certain = images.dtype == torch.uint8 or traced(images)
        pixels = not images.is_floating_point() if certain else holds_pixels(images, self.mean, self.std)
        if not pixels:
            return images.to(dtype)
        # In fp32 at least, also for weights of lower precision, in which 1/255 would be coarse.
        exact = torch.promote_types(self.mean.dtype, torch.float32)
        normalized = (images.to(exact) / 255 - self.mean.to(exact)) / self.std.to(exact)
        return normalized.to(dtype)


class TextTower(Tower):
    """A text tower; ``shares_prefixes`` says whether it takes ``prefix``, ``takes_plans`` whether it takes ``plan``."""

    Config: ClassVar[type[TextConfig]] = TextConfig
    shares_prefixes: ClassVar[bool] = False
    takes_plans: ClassVar[bool] = False

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        return_tokens: bool = False,
        seeds: Tensor | None = None,
        prefix: SharedPrefixes | None = None,
    ) -> Encoded:
        """Ids int64 [B, L] -> ``Encoded``. ``lengths`` int64 [B] counts the ids up to and including each end token.

        ``seeds``: see ``ImageTower.forward``. ``prefix`` where texts begin alike; raises ConfigError where the tower cannot
        share prefixes, and for ids that are no [B, at most the context]. A tower that ``takes_plans`` has one more parameter,
        by name: ``plan``, which says how these ids are laid out; with it nothing is read back from the device.
        """
        raise NotImplementedError


def lengths_of(tokens: Tensor, end_id: int | None = None) -> Tensor:
    """Ids up to and including the first end token of each text, int64 [B], where nobody carried them.

    For the public interface only. ``end_id`` None takes the largest id, which is CLIP's end token.
    """
    return (tokens if end_id is None else (tokens == end_id).int()).argmax(dim=1) + 1


TOWERS: Registry[type[Tower]] = Registry("diptych.models", "tower family")
