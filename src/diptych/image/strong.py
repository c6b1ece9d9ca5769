"""The strong random view of self-supervised objectives: SimCLR's recipe, on bytes.

Crop, jitter of brightness, contrast, saturation and hue in a random order, gray, blur, mirror, and BYOL's solarizing:
probabilities and strengths as in SLIP (Mu et al. 2021, "SLIP: Self-supervision meets Language-Image Pre-training", its
``augment``), which took them from SimCLR (Chen et al. 2020) and MoCo v2, or as named in ``RECIPES``. No training loss and no text
is known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from diptych.errors import ConfigError
from diptych.image.colors import Change, changed
from diptych.image.pixels import AnyImage
from diptych.image.transforms import BLUR_SIGMA, TrainTransform

JITTER = ("brightness", "contrast", "saturation")
SOLARIZED = 128
"""The value from which solarizing inverts: BYOL's (Grill et al. 2020, "Bootstrap your own latent", appendix B)."""


@dataclass(frozen=True, kw_only=True)
class StrongOptions:
    """How strongly an image is changed; the defaults are SLIP's.

    ``scale`` bounds the share of the area that the crop covers. With probability ``jitter_p`` the factors of brightness,
    contrast and saturation are drawn from 1 - ``jitter`` to 1 + ``jitter`` and the hue is shifted by up to ``hue`` of the circle,
    in a random order; with ``grayscale_p`` color is dropped; with ``blur_p`` a Gaussian of standard deviation ``sigma`` pixels
    blurs; with ``flip_p`` it is mirrored; with ``solarize_p`` values of at least 128 are inverted. Raises ConfigError for
    bounds that are none, named as the flags of ``diptych train``.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    jitter_p: float = 0.8
    jitter: float = 0.4
    hue: float = 0.1
    grayscale_p: float = 0.2
    blur_p: float = 0.5
    sigma: tuple[float, float] = BLUR_SIGMA
    flip_p: float = 0.5
    solarize_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(
                f"--strong-scale {self.scale[0]:g} {self.scale[1]:g}: expected the least and the most share of an image that "
                "a crop keeps, above 0 and at most 1."
            )
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ConfigError(
                f"--strong-blur-sigma {self.sigma[0]:g} {self.sigma[1]:g}: expected the least and the most standard deviation "
                "in pixels, above 0."
            )


RECIPES: dict[str, StrongOptions] = {"slip": StrongOptions(), "moco-v2": StrongOptions(scale=(0.2, 1.0))}
"""Published strengths by name: SLIP's, and MoCo v2's, which DeCLIP takes for DeCLIP, FILIP, DeFILIP and its own SLIP."""


@dataclass(frozen=True)
class StrongTransform(StrongOptions):
    """A small random crop, strongly changed: two of one image are a positive pair of SimCLR.

    ``size`` in pixels; ``interpolation`` and ``kernel`` as in TrainTransform; strengths as in StrongOptions.
    """

    size: int
    interpolation: str = "bicubic"
    kernel: Literal["exact", "fast"] = "exact"

    def __call__(self, image: AnyImage, rng: np.random.Generator) -> np.ndarray:
        """An image, or its pixels uint8 [h, w, 3] -> uint8 [3, size, size]; all randomness from ``rng``."""
        crop = TrainTransform(self.size, self.scale, interpolation=self.interpolation, kernel=self.kernel)
        return changed(crop(image, rng), self._drawn(rng))

    def _drawn(self, rng: np.random.Generator) -> list[Change]:
        """The changes of a crop, in their order."""
        changes = self._jitter(rng) if rng.random() < self.jitter_p else []
        if rng.random() < self.grayscale_p:
            changes.append(("gray", 0.0))
        if rng.random() < self.blur_p:
            changes.append(("blur", float(rng.uniform(*self.sigma))))
        if rng.random() < self.flip_p:
            changes.append(("mirror", 0.0))
        # A change that is never made draws nothing, so that runs from before it are what they were.
        if self.solarize_p and rng.random() < self.solarize_p:
            changes.append(("solarize", float(SOLARIZED)))
        return changes

    def _jitter(self, rng: np.random.Generator) -> list[Change]:
        order = rng.permutation(len(JITTER) + 1)
        factors = rng.uniform(max(0.0, 1 - self.jitter), 1 + self.jitter, len(JITTER))
        shift = float(rng.uniform(-self.hue, self.hue))
        amounts = [*zip(JITTER, factors.tolist(), strict=True), ("hue", shift)]
        # A factor of 1 changes nothing, but a turn by nothing would round colors.
        return [amounts[number] for number in order.tolist() if (self.hue if number == len(JITTER) else self.jitter)]
