"""The model: an image tower, a text tower, and the scale and bias of their similarity; and how it is created.

Towers are called (``model.image(x)``, ``model.text(t)``), because sharding hooks run on calls; ``encode_image`` and
``encode_text`` are the convenience on top. No loss, no device, no parallelism.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.models._base import TOWERS, ImageTower, TextTower
from diptych.models._config import ModelConfig, PreprocessConfig, TextConfig
from diptych.models._locks import lock_all_but
from diptych.models._presets import model_config
from diptych.types import SharedPrefixes, TextPlan


class TwoTower(nn.Module):
    """An image tower, a text tower, and the learned scale (a logarithm) and bias of their cosine similarity.

    ``logit_scale`` and ``logit_bias`` (or None) have shape [1], which every sharding scheme accepts.
    """

    image: ImageTower
    text: TextTower
    logit_bias: nn.Parameter | None
    locked: tuple[nn.Module, ...] = ()

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        image, text = TOWERS.get(config.vision.family), TOWERS.get(config.text.family)
        if not (issubclass(image, ImageTower) and issubclass(text, TextTower)):
            raise ConfigError(
                f"{config.name}: families {config.vision.family!r} and {config.text.family!r} were given; expected an image"
                " tower's and a text tower's."
            )
        self.image, self.text = image(config), text(config)
        self.logit_scale = nn.Parameter(torch.full((1,), config.logit_scale))
        bias = config.logit_bias
        self.register_parameter("logit_bias", None if bias is None else nn.Parameter(torch.full((1,), bias)))

    @property
    def shares_prefixes(self) -> bool:
        """Whether ``encode_text`` takes ``prefix``."""
        return self.text.shares_prefixes

    @property
    def takes_plans(self) -> bool:
        """Whether ``encode_text`` takes ``plan``."""
        return self.text.takes_plans

    @property
    def text_config(self) -> TextConfig:
        """The text tower's part of the config."""
        return self.config.text

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """Features [B, D] of uint8 (or already normalized floating-point) images [B, 3, H, W]."""
        features = self.image(images).pooled
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(
        self,
        tokens: Tensor,
        normalize: bool = False,
        lengths: Tensor | None = None,
        prefix: SharedPrefixes | None = None,
        *,
        plan: TextPlan | None = None,
    ) -> Tensor:
        """Features [B, D] of token ids [B, L]; what follows the end token is ignored. See ``TextTower.forward``."""
        planned = {} if plan is None else {"plan": plan}
        features = self.text(tokens, lengths, prefix=prefix, **planned).pooled
        return F.normalize(features, dim=-1) if normalize else features

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit image features [B, D], unit text features [B, D], and the scale, as open_clip's models return them."""
        return self.encode_image(images, True), self.encode_text(tokens, True), self.logit_scale.exp()

    @torch.no_grad()
    def init_weights(self) -> TwoTower:
        """Initialize everything, whatever memory held before (a model made on the meta device, then ``to_empty``)."""
        self.logit_scale.fill_(self.config.logit_scale)
        if self.logit_bias is not None and self.config.logit_bias is not None:
            self.logit_bias.fill_(self.config.logit_bias)
        self._fill_pixel_statistics()
        self.image.init_weights()
        self.text.init_weights()
        return self

    @torch.no_grad()
    def cast_towers(self, dtype: torch.dtype) -> TwoTower:
        """Store the towers' parameters in ``dtype``, bfloat16 say, and compute in it (``--precision pure_bf16``).

        In place: parameters stay the same objects. Scale and bias, batch norms, single numbers and all buffers stay as they are.
        """
        for tower in (self.image, self.text):
            for parameter in tower.castable().values():
                parameter.data = parameter.data.to(dtype)
            tower.computes_as_stored = True
        return self

    @torch.no_grad()
    def set_preprocess(self, preprocess: PreprocessConfig) -> TwoTower:
        """Give the model another preprocessing of images, in its config and in the image tower's mean and std."""
        self.config = dataclasses.replace(self.config, preprocess=preprocess)
        self.image.config = self.text.config = self.config
        self._fill_pixel_statistics()
        return self

    def _fill_pixel_statistics(self) -> None:
        preprocess = self.config.preprocess
        for buffer, values in ((self.image.mean, preprocess.mean), (self.image.std, preprocess.std)):
            buffer.copy_(torch.tensor(values).view(3, 1, 1))

    def lock(
        self, image: bool = False, text: bool = False, unlocked_image_groups: int = 0, unlocked_text_groups: int = 0
    ) -> TwoTower:
        """Freeze towers (Zhai et al. 2022, "LiT"): no gradient, and evaluation mode whatever ``train`` says.

        The last groups of a locked tower (see ``parameter_groups``) may be left unlocked; such a tower follows ``train``.
        """
        towers = ((self.image, image, unlocked_image_groups), (self.text, text, unlocked_text_groups))
        for tower, chosen, unlocked in towers:
            if chosen:
                lock_all_but(tower, unlocked)
        self.locked = tuple(tower for tower, chosen, unlocked in towers if chosen and not unlocked)
        return self.train(self.training)

    def train(self, mode: bool = True) -> TwoTower:
        """Training mode, but for locked towers."""
        super().train(mode)
        for tower in self.locked:
            tower.eval()
        return self

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute activations of both towers in the backward pass of training."""
        self.image.checkpoint_activations(on)
        self.text.checkpoint_activations(on)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile each block of both towers, when it is first called; results are equal but for the last bits."""
        self.image.compile_blocks(backend)
        self.text.compile_blocks(backend)


def create_model(
    model: str | ModelConfig, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> TwoTower:
    """A model with fresh random weights, from a preset's name or a config; on ``device="meta"`` without memory.

    Raises ConfigError for an unknown name.
    """
    config = model_config(model) if isinstance(model, str) else model
    # Built without memory and filled once: torch's own initial values would only be drawn to be thrown away.
    with torch.device("meta"):
        built = TwoTower(config)
    if dtype is not None:
        built.to(dtype)
    target = torch.device(device or "cpu")
    return built if target.type == "meta" else built.to_empty(device=target).init_weights()
