"""From a model's config to the transforms that its weights were trained with.

Pixels leave as uint8; the tower normalizes. Training's augmentations are not decided here: they are options of ``train``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.image import EvalTransform, TrainTransform
from diptych.models import ModelConfig


@dataclass(frozen=True)
class Preprocess:
    """An image to what the image tower takes: uint8 [3, H, W]; the tower normalizes with its own mean and std."""

    transform: EvalTransform | TrainTransform

    def __call__(self, image: Image.Image) -> Tensor:
        """``image`` of any mode. A training transform draws its crop from torch's global random state."""
        rgb = image.convert("RGB")
        if isinstance(self.transform, EvalTransform):
            return self.transform(rgb)
        seed = int(torch.randint(2**62, ()).item())
        return torch.from_numpy(self.transform(rgb, np.random.default_rng(seed)))


def eval_transform(config: ModelConfig) -> EvalTransform:
    """What evaluation does to an image before this model's image tower."""
    preprocess = config.preprocess
    return EvalTransform(
        config.vision.image_size, preprocess.resize_mode, preprocess.interpolation, preprocess.resize_to
    )


def transforms(config: ModelConfig) -> tuple[Preprocess, Preprocess]:
    """The training and the evaluation preprocessing of an architecture."""
    train = TrainTransform(config.vision.image_size, interpolation=config.preprocess.interpolation)
    return Preprocess(train), Preprocess(eval_transform(config))
