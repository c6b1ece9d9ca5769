"""The maths: two towers, an image's and a text's, and the scale that compares what they say.

A family of towers is a file here; a size is a table in ``presets/``. Models know no device, no loss, no parallelism and no
foreign names of weights. Towers are called (``model.image(x)``, ``model.text(t)``), because sharding hooks run on calls;
``encode_image`` and ``encode_text`` are the convenience on top.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.models._config import ModelConfig, PreprocessConfig, model_config_from_dict
from diptych.models._presets import list_models, model_config
from diptych.registry import Registry
from diptych.types import Encoded

TOWERS: Registry[type[nn.Module]] = Registry(__name__, "tower family")


class Tower(nn.Module):
    """What both towers share. A family gives ``blocks``, ``forward`` and ``init_weights``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Recompute activations in the backward pass of training: less memory, more time.
        self.recompute = False

    def blocks(self) -> list[nn.Module]:
        """The repeated blocks, first to last: what to shard and to checkpoint."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Draw fresh weights from torch's random state."""
        raise NotImplementedError


class ImageTower(Tower):
    """An image tower: ``forward(images, return_tokens=False) -> Encoded``; holds the mean and std of its pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.tensor(config.preprocess.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(config.preprocess.std).view(3, 1, 1))

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> normalised, in the dtype of the weights; a floating-point tensor is taken as it is.

        Raises ConfigError for another shape.
        """
        size = self.config.vision.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size):
            raise ConfigError(
                f"images of shape {list(images.shape)} were given; {self.config.name} takes [B, 3, {size}, {size}]."
            )
        if images.is_floating_point():
            return images
        # In fp32 at least, also for weights of lower precision, in which 1/255 would be coarse.
        exact = torch.promote_types(self.mean.dtype, torch.float32)
        normalised = (images.to(exact) / 255 - self.mean.to(exact)) / self.std.to(exact)
        return normalised.to(next(self.parameters()).dtype)


class SharedPrefixes(NamedTuple):
    """Texts that begin with the same ids: ``group`` int64 [B] of each text, ``length`` int64 [B] of the prefix it shares."""

    group: Tensor
    length: Tensor


class TextTower(Tower):
    """A text tower: ``forward(tokens, lengths=None, return_tokens=False) -> Encoded``; see ``shares_prefixes``."""

    shares_prefixes: ClassVar[bool] = False


class TwoTower(nn.Module):
    """An image tower, a text tower, and the learned scale (a logarithm) and bias of their cosine similarity.

    ``logit_scale`` and ``logit_bias`` (or None) have shape [1], which every sharding scheme accepts.
    """

    logit_bias: nn.Parameter | None
    locked: tuple[nn.Module, ...] = ()

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image = TOWERS.get(config.vision.family)(config)
        self.text = TOWERS.get(config.text.family)(config)
        self.logit_scale = nn.Parameter(torch.full((1,), config.logit_scale))
        bias = config.logit_bias
        self.register_parameter("logit_bias", None if bias is None else nn.Parameter(torch.full((1,), bias)))

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Features [B, D] of uint8 (or already normalised floating-point) images [B, 3, H, W]."""
        features = self.image(images).pooled
        return F.normalize(features, dim=-1) if normalize else features

    @property
    def shares_prefixes(self) -> bool:
        """Whether ``encode_text`` takes ``prefix``."""
        return bool(self.text.shares_prefixes)

    def encode_text(
        self,
        tokens: Tensor,
        normalize: bool = False,
        lengths: Tensor | None = None,
        prefix: SharedPrefixes | None = None,
    ) -> Tensor:
        """Features [B, D] of token ids [B, L]; what follows the end token is ignored."""
        features = self.text(tokens, lengths, **({} if prefix is None else {"prefix": prefix})).pooled
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit image features [B, D], unit text features [B, D], and the scale, as open_clip's models return them."""
        return self.encode_image(images, True), self.encode_text(tokens, True), self.logit_scale.exp()

    def init_weights(self) -> TwoTower:
        """Draw fresh weights, whatever memory held before (a model made on the meta device, then ``to_empty``)."""
        with torch.no_grad():
            self.logit_scale.fill_(self.config.logit_scale)
            if self.logit_bias is not None and self.config.logit_bias is not None:
                self.logit_bias.fill_(self.config.logit_bias)
            look: PreprocessConfig = self.config.preprocess
            for buffer, values in ((self.image.mean, look.mean), (self.image.std, look.std)):
                buffer.copy_(torch.tensor(values).view(3, 1, 1))  # type: ignore[union-attr, operator]
        for tower in (self.image, self.text):
            tower.init_weights()  # type: ignore[operator]
        return self

    def lock(self, image: bool = False, text: bool = False) -> TwoTower:
        """Freeze towers (Zhai et al. 2022, "LiT"): no gradient, and evaluation mode whatever ``train`` says."""
        self.locked = tuple(tower for tower, asked in ((self.image, image), (self.text, text)) if asked)
        for tower in self.locked:
            tower.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> TwoTower:
        """Training mode, but for locked towers."""
        super().train(mode)
        for tower in self.locked:
            tower.eval()
        return self

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Recompute activations in the backward pass of training."""
        for tower in (self.image, self.text):
            tower.recompute = on  # type: ignore[assignment]


def create_model(model: str | ModelConfig, *, device: Any = None, dtype: torch.dtype | None = None) -> TwoTower:
    """A model with fresh random weights, from a preset's name or a config; on ``device="meta"`` without memory.

    Raises ConfigError for an unknown name.
    """
    config = model_config(model) if isinstance(model, str) else model
    # Built without memory and filled once: torch's own initial values would only be drawn to be thrown away.
    with torch.device("meta"):
        built = TwoTower(config)
    if dtype is not None:
        built.to(dtype)
    place = torch.device(device or "cpu")
    return built if place.type == "meta" else built.to_empty(device=place).init_weights()


__all__ = [
    "TOWERS",
    "ConfigError",
    "Encoded",
    "ImageTower",
    "ModelConfig",
    "PreprocessConfig",
    "SharedPrefixes",
    "TextTower",
    "TwoTower",
    "create_model",
    "list_models",
    "model_config",
    "model_config_from_dict",
]
