"""From a model's config to the transforms that its weights were trained with.

Pixels leave as uint8; the tower normalises. Not a place for training's augmentations: those are the training room's options.
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
    """A picture to what the image tower takes: uint8 [3, H, W]; the tower normalises with its own mean and std."""

    transform: EvalTransform | TrainTransform

    def __call__(self, image: Image.Image) -> Tensor:
        """``image`` of any mode. A training transform draws its crop from torch's global random state."""
        rgb = image.convert("RGB")
        if isinstance(self.transform, EvalTransform):
            return self.transform(rgb)
        seed = int(torch.randint(2**62, ()).item())
        return torch.from_numpy(self.transform(rgb, np.random.default_rng(seed)))


def eval_transform(config: ModelConfig) -> EvalTransform:
    """What evaluation does to a picture before this model sees it."""
    look = config.preprocess
    return EvalTransform(config.vision.image_size, look.resize_mode, look.interpolation, look.resize_to)


def transforms(config: ModelConfig) -> tuple[Preprocess, Preprocess]:
    """The training and the evaluation preprocessing of an architecture."""
    train = TrainTransform(config.vision.image_size, interpolation=config.preprocess.interpolation)
    return Preprocess(train), Preprocess(eval_transform(config))
