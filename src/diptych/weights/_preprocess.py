"""From a model's config to the transforms that its weights were trained with.

Pixels leave as uint8; the tower normalizes. Training's augmentations are not decided here: they are options of ``train``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diptych.image import AnyImage, EvalTransform, TrainTransform
from diptych.models import ModelConfig


@dataclass(frozen=True)
class Preprocess:
    """An image to what the image tower takes: uint8 [3, H, W]; the tower normalizes with its own mean and std."""

    transform: EvalTransform | TrainTransform

    def __call__(self, image: AnyImage) -> Tensor:
        """A Pillow image of any mode, a path, encoded bytes, an array [H, W, 3] or a tensor [3, H, W], as ``pixels_of`` takes it.

        The pixels of a file are those that ``diptych train`` and ``diptych evaluate`` see: upright by its EXIF, transparent
        parts white. A training transform draws its crop from torch's global random state. Raises RecordError.
        """
        if isinstance(self.transform, EvalTransform):
            return self.transform(image)
        seed = int(torch.randint(2**62, ()).item())
        return torch.from_numpy(self.transform(image, np.random.default_rng(seed)))


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
