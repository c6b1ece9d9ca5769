"""open_clip's ``transform``: image transforms that end in a normalized float tensor, with torchvision's pixels and attributes.

``preprocess.transforms`` is a list of callables under torchvision's class names (``Resize``, ``CenterCrop``, ``Normalize``), none
of which needs torchvision. Diptych's own transforms stay uint8 and are in ``diptych.image``.
"""

from __future__ import annotations

import random
import warnings
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.open_clip._augment import ColorJitter, Grayscale, RandomResizedCrop
from diptych.open_clip._compose import (
    CenterCrop,
    CenterCropOrPad,
    Compose,
    Normalize,
    Resize,
    ResizeKeepRatio,
    ToTensor,
    center_crop_or_pad,
)
from diptych.open_clip._errors import InvalidError
from diptych.open_clip._pixels import (
    InterpolationMode,
    InvalidTypeError,
)
from diptych.open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from diptych.open_clip.utils import to_2tuple

__all__ = [
    "AugmentationCfg",
    "CenterCrop",
    "CenterCropOrPad",
    "ColorJitter",
    "Compose",
    "Grayscale",
    "InterpolationMode",
    "MaybeConvertMode",
    "MaybeToTensor",
    "Normalize",
    "PreprocessCfg",
    "RandomResizedCrop",
    "Resize",
    "ResizeKeepRatio",
    "ToTensor",
    "center_crop_or_pad",
    "color_jitter",
    "gray_scale",
    "image_transform",
    "image_transform_v2",
    "merge_preprocess_dict",
    "merge_preprocess_kwargs",
]


@dataclass
class PreprocessCfg:
    """How evaluation prepares an image; ``size`` one number or (height, width)."""

    size: int | tuple[int, int] = 224
    mode: str = "RGB"
    mean: tuple[float, ...] = OPENAI_DATASET_MEAN
    std: tuple[float, ...] = OPENAI_DATASET_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    def __post_init__(self) -> None:
        assert self.mode == "RGB", f"mode {self.mode!r} was given; models take RGB."

    @property
    def num_channels(self) -> int:
        """3, for RGB."""
        return 3

    @property
    def input_size(self) -> tuple[int, ...]:
        """(channels, height, width)."""
        return (self.num_channels, *to_2tuple(self.size))


PREPROCESS_KEYS = {field.name for field in fields(PreprocessCfg)}


def merge_preprocess_dict(base: PreprocessCfg | dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """The fields of ``base``, replaced by those of ``overlay`` that are not None; other keys are left out."""
    merged = asdict(base) if isinstance(base, PreprocessCfg) else base
    changes = {name: value for name, value in (overlay or {}).items() if value is not None}
    return {name: value for name, value in {**merged, **changes}.items() if name in PREPROCESS_KEYS}


def merge_preprocess_kwargs(base: PreprocessCfg, **kwargs: Any) -> dict[str, Any]:
    """``merge_preprocess_dict`` with keywords."""
    return merge_preprocess_dict(base, kwargs)


@dataclass
class AugmentationCfg:
    """How training changes images. ``ratio``, ``re_prob``, ``re_count`` and ``use_timm`` are timm's, which is not here."""

    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] | None = None
    color_jitter: float | tuple[float, float, float] | tuple[float, float, float, float] | None = None
    re_prob: float | None = None
    re_count: int | None = None
    use_timm: bool = False
    color_jitter_prob: float | None = None
    gray_scale_prob: float | None = None


class MaybeConvertMode:
    """PIL images to ``mode``; arrays and tensors stay as they are."""

    def __init__(self, mode: str = "RGB") -> None:
        self.mode = mode

    def __call__(self, pic: Any) -> Any:
        """PIL image, ndarray or tensor -> the same type."""
        return pic if isinstance(pic, np.ndarray | Tensor) else pic.convert(self.mode)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class MaybeToTensor(ToTensor):
    """``ToTensor``; tensors stay as they are."""

    def __call__(self, pic: Any) -> Tensor:
        """The tensor."""
        return pic if isinstance(pic, Tensor) else super().__call__(pic)


class _Sometimes:
    """One transform, with probability ``p`` drawn from ``random``."""

    def __init__(self, p: float, transf: nn.Module) -> None:
        if not 0.0 <= p <= 1.0:
            raise InvalidError(f"a probability of {p} was given; expected 0 to 1.")
        self.p, self.transf = p, transf

    def __call__(self, img: Any) -> Any:
        """The image, changed or itself."""
        return self.transf(img) if random.random() < self.p else img


class color_jitter(_Sometimes):
    """``ColorJitter`` with probability ``p``."""

    def __init__(
        self, brightness: Any = 0.0, contrast: Any = 0.0, saturation: Any = 0.0, hue: Any = 0.0, p: float = 0.8
    ) -> None:
        super().__init__(p, ColorJitter(brightness, contrast, saturation, hue))


class gray_scale(_Sometimes):
    """Three equal channels of luma, with probability ``p``."""

    def __init__(self, p: float = 0.2) -> None:
        super().__init__(p, Grayscale(num_output_channels=3))


def image_transform(
    image_size: int | tuple[int, int],
    is_train: bool,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    resize_mode: str | None = None,
    interpolation: str | None = None,
    fill_color: int = 0,
    aug_cfg: dict[str, Any] | AugmentationCfg | None = None,
) -> Compose:
    """PIL image -> normalized float32 [3, height, width].

    ``interpolation`` bicubic, bilinear or random, which is bicubic; ``resize_mode`` shortest, longest (padded with
    ``fill_color``) or squash. Both are for evaluation: a training crop is always bicubic. The size of a shortest side that is
    no square's is always bicubic too. ``aug_cfg`` is for training. All this is as in open_clip. Raises ConfigError for others.
    """
    means, stds = _three(mean or OPENAI_DATASET_MEAN), _three(std or OPENAI_DATASET_STD)
    kernel, fit = interpolation or "bicubic", resize_mode or "shortest"
    if kernel not in ("bicubic", "bilinear", "random"):
        raise InvalidError(f"interpolation {kernel!r} was given; expected bicubic, bilinear or random.")
    if fit not in ("shortest", "longest", "squash"):
        raise InvalidError(f"resize_mode {fit!r} was given; expected shortest, longest or squash.")
    if isinstance(aug_cfg, dict):
        aug_cfg = _augmentation(aug_cfg)
    if is_train:
        steps = _training_steps(image_size, aug_cfg or AugmentationCfg())
        return Compose([*steps, MaybeToTensor(), Normalize(means, stds)])
    if aug_cfg is not None:
        warnings.warn(
            "aug_cfg was given for evaluation, which changes no image; it is for is_train=True.", stacklevel=2
        )
    mode = InterpolationMode.BILINEAR if kernel == "bilinear" else InterpolationMode.BICUBIC
    steps = _evaluation_steps(image_size, fit, mode, fill_color)
    return Compose([*steps, MaybeConvertMode(), MaybeToTensor(), Normalize(means, stds)])


def image_transform_v2(
    cfg: PreprocessCfg, is_train: bool, aug_cfg: dict[str, Any] | AugmentationCfg | None = None
) -> Compose:
    """``image_transform`` of what ``cfg`` says."""
    options = {"resize_mode": cfg.resize_mode, "interpolation": cfg.interpolation, "fill_color": cfg.fill_color}
    return image_transform(cfg.size, is_train, cfg.mean, cfg.std, aug_cfg=aug_cfg, **options)  # type: ignore[arg-type]


def _three(values: Any) -> Any:
    return values if isinstance(values, list | tuple) else (values,) * 3


def _augmentation(options: dict[str, Any]) -> AugmentationCfg:
    names = [field.name for field in fields(AugmentationCfg)]
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise InvalidTypeError(f"aug_cfg has {', '.join(unknown)}; expected some of {', '.join(names)}.")
    return AugmentationCfg(**options)


def _training_steps(size: Any, cfg: AugmentationCfg) -> list[Any]:
    if cfg.use_timm:
        raise ConfigError(
            "aug_cfg has use_timm; timm's augmentations are not here. There are scale, color_jitter with color_jitter_prob,"
            " and gray_scale_prob; or use timm.data.create_transform itself."
        )
    steps: list[Any] = [RandomResizedCrop(size, cfg.scale, interpolation=InterpolationMode.BICUBIC), MaybeConvertMode()]
    unused = [name for name in ("ratio", "re_prob", "re_count") if getattr(cfg, name) is not None]
    if cfg.color_jitter_prob:
        jitter = cfg.color_jitter
        if not isinstance(jitter, list | tuple) or len(jitter) != 4:
            raise InvalidError(
                f"color_jitter {jitter} was given; expected four: brightness, contrast, saturation, hue."
            )
        steps.append(color_jitter(*jitter, p=cfg.color_jitter_prob))
    elif cfg.color_jitter is not None:
        unused.append("color_jitter")
    if cfg.gray_scale_prob:
        steps.append(gray_scale(cfg.gray_scale_prob))
    if unused:
        warnings.warn(
            f"aug_cfg has {', '.join(unused)}, which this transform does not use, as in open_clip.", stacklevel=3
        )
    return steps


def _evaluation_steps(size: Any, fit: str, mode: InterpolationMode, fill: int) -> list[Any]:
    if fit == "longest":
        return [ResizeKeepRatio(size, longest=1, interpolation=mode), CenterCropOrPad(size, fill=fill)]
    sides = size if isinstance(size, list | tuple) else (size, size)
    if fit == "squash":
        return [Resize(sides, interpolation=mode)]
    if sides[0] == sides[1]:
        return [Resize(sides[0], interpolation=mode), CenterCrop(sides)]
    return [ResizeKeepRatio(sides), CenterCrop(sides)]
