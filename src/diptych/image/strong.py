"""The strong random view of self-supervised objectives: SimCLR's recipe, on bytes, by Pillow and numpy.

Crop, jitter of brightness, contrast, saturation and hue in a random order, gray, blur, mirror: probabilities and strengths as
in SLIP (Mu et al. 2021, "SLIP: Self-supervision meets Language-Image Pre-training", its ``augment``), which took them from
SimCLR (Chen et al. 2020) and MoCo v2. No training loss and no text is known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from diptych.image.pixels import AnyImage
from diptych.image.resize import planar
from diptych.image.transforms import TrainTransform, shift_hue

JITTER = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True)
class StrongTransform:
    """A small random crop, strongly changed: two of one image are a positive pair of SimCLR.

    ``scale`` bounds the share of the area that the crop covers. With probability ``jitter_p`` the factors of brightness,
    contrast and saturation are drawn from 1 - ``jitter`` to 1 + ``jitter`` and the hue is shifted by up to ``hue`` of the circle,
    in a random order; with ``grayscale_p`` color is dropped; with ``blur_p`` a Gaussian of standard deviation ``sigma`` pixels
    blurs; with ``flip_p`` it is mirrored. ``kernel`` as in TrainTransform.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    interpolation: str = "bicubic"
    jitter_p: float = 0.8
    jitter: float = 0.4
    hue: float = 0.1
    grayscale_p: float = 0.2
    blur_p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)
    flip_p: float = 0.5
    kernel: Literal["exact", "fast"] = "exact"

    def __call__(self, image: AnyImage, rng: np.random.Generator) -> np.ndarray:
        """An image, or its pixels uint8 [h, w, 3] -> uint8 [3, size, size]; all randomness from ``rng``."""
        crop = TrainTransform(self.size, self.scale, interpolation=self.interpolation, kernel=self.kernel)
        view = Image.fromarray(crop(image, rng).transpose(1, 2, 0))
        if rng.random() < self.jitter_p:
            view = self._jittered(view, rng)
        if rng.random() < self.grayscale_p:
            view = view.convert("L").convert("RGB")
        if rng.random() < self.blur_p:
            view = view.filter(ImageFilter.GaussianBlur(rng.uniform(*self.sigma)))
        if rng.random() < self.flip_p:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return planar(np.asarray(view))

    def _jittered(self, view: Image.Image, rng: np.random.Generator) -> Image.Image:
        order = rng.permutation(len(JITTER) + 1)
        factors = rng.uniform(max(0.0, 1 - self.jitter), 1 + self.jitter, len(JITTER))
        shift = float(rng.uniform(-self.hue, self.hue))
        for number in order.tolist():
            view = JITTER[number](view).enhance(factors[number]) if number < len(JITTER) else shift_hue(view, shift)
        return view
