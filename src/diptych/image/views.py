"""Image views by name: what an objective asks for in ``Wants.images``, and how each is made.

``VIEWS`` is the whole table; a new view is a line in it. A recipe takes the run's ``ViewOptions`` and gives a view: a callable of
pixels and a random generator. Which stream of randomness a view draws from is the data package's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

import numpy as np

from diptych.image.strong import StrongOptions, StrongTransform
from diptych.image.transforms import EvalTransform, TrainTransform


@dataclass(frozen=True)
class ViewOptions:
    """What a run says of its views: the square's ``size`` in pixels, the options of the training crop, the model's preprocess.

    ``scale``, ``flip``, ``color_jitter``, ``hue``, ``color_jitter_prob``, ``grayscale``, ``blur``, ``auto`` as in TrainTransform;
    ``resize_mode``, ``resize_to`` as in EvalTransform; ``strong`` of the strong view; ``interpolation`` for all views, ``kernel``
    for the random ones.
    """

    size: int
    scale: tuple[float, float] = (0.9, 1.0)
    flip: float = 0.0
    color_jitter: float = 0.0
    grayscale: float = 0.0
    kernel: Literal["exact", "fast"] = "exact"
    interpolation: str = "bicubic"
    resize_mode: Literal["shortest", "squash", "longest"] = "shortest"
    resize_to: int = 0
    hue: float = 0.0
    color_jitter_prob: float = 1.0
    blur: float = 0.0
    auto: Literal["", "imagenet"] = ""
    strong: StrongOptions = field(default_factory=StrongOptions)

    @property
    def train_transform(self) -> TrainTransform:
        """The training crop."""
        return TrainTransform(
            self.size, self.scale, interpolation=self.interpolation, flip=self.flip, color_jitter=self.color_jitter,
            grayscale=self.grayscale, kernel=self.kernel, hue=self.hue, color_jitter_prob=self.color_jitter_prob,
            blur=self.blur, auto=self.auto,
        )  # fmt: skip

    @property
    def eval_transform(self) -> EvalTransform:
        """The fixed preprocessing of evaluation."""
        return EvalTransform(self.size, self.resize_mode, self.interpolation, self.resize_to)


class ImageView(Protocol):
    """A view: how pixels become the square that a tower takes."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator, /) -> np.ndarray:
        """Pixels uint8 [h, w, 3] -> uint8 [3, size, size]; all randomness from ``rng``."""


@dataclass(frozen=True)
class EvalView:
    """The fixed preprocessing of evaluation as a view: it draws nothing."""

    transform: EvalTransform

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Pixels uint8 [h, w, 3] -> uint8 [3, size, size]."""
        return self.transform(image).numpy()


def _crop(options: ViewOptions) -> ImageView:
    return options.train_transform


def _strong(options: ViewOptions) -> ImageView:
    return StrongTransform(options.size, options.interpolation, options.kernel, **asdict(options.strong))


def _eval(options: ViewOptions) -> ImageView:
    return EvalView(options.eval_transform)


VIEWS: dict[str, Callable[[ViewOptions], ImageView]] = {"crop": _crop, "strong": _strong, "eval": _eval}
"""Name -> recipe. "crop": the training crop; "strong": SimCLR's augmentation; "eval": the pixels of evaluation."""
