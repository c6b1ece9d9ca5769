"""What the options of views come to: whose strengths, which base view, whose synonyms; and which contradict each other.

What is given and no view of the run uses is an error here, before anything is read; options of the crop, which recipes set for
any objective, are a line of the log instead.
"""

from __future__ import annotations

import dataclasses

from diptych import log
from diptych.errors import ConfigError
from diptych.image import STRONG_RECIPES, StrongOptions, ViewOptions
from diptych.models import ModelConfig
from diptych.text import TextViewOptions
from diptych.train.config import DataOptions
from diptych.train.view_flags import ViewFlags
from diptych.types import Wants

STRONG_FIELDS = {
    "strong_scale": "scale", "strong_jitter": "jitter", "strong_hue": "hue", "strong_jitter_prob": "jitter_p",
    "strong_grayscale": "grayscale_p", "strong_blur": "blur_p", "strong_blur_sigma": "sigma", "strong_flip": "flip_p",
    "strong_solarize": "solarize_p",
}  # fmt: skip
"""Option -> field of ``StrongOptions``."""


def training_wants(wants: Wants, flags: ViewFlags, objective: str) -> Wants:
    """What an objective wants, with its base view replaced as ``--train-view`` says.

    Raises ConfigError for an objective that chooses its views itself, and for flags that no view of the run uses.
    """
    if flags.train_view != "crop":
        if wants.images != ("crop",):
            views = ", ".join(wants.images) or "none"
            raise ConfigError(
                f"--train-view {flags.train_view}: --objective {objective} has image views of its own ({views}); leave it out."
            )
        wants = dataclasses.replace(wants, images=(flags.train_view,))
    given = [name for name in ("strong_recipe", *STRONG_FIELDS) if getattr(flags, name) not in (None, "")]
    if given and "strong" not in wants.images:
        raise ConfigError(
            f"{_flag(given[0])}: no view of --objective {objective} is strong ({', '.join(wants.images) or 'no image view'}); "
            "leave it out, or add --train-view strong."
        )
    if flags.synonyms != "shipped" and "augmented" not in wants.texts:
        raise ConfigError(
            f"--synonyms {flags.synonyms}: --objective {objective} augments no captions, so it needs none; leave it out."
        )
    return wants


def strong_options(flags: ViewFlags) -> StrongOptions:
    """The strengths of the strong view: the recipe's, and those that are given.

    Raises ConfigError for bounds that are none, and for one option without the other that it belongs to.
    """
    given = {field: value for name, field in STRONG_FIELDS.items() if (value := getattr(flags, name)) is not None}
    options = dataclasses.replace(STRONG_RECIPES[flags.strong_recipe or "slip"], **given)
    if flags.strong_blur_sigma is not None and not options.blur_p:
        raise ConfigError("--strong-blur-sigma goes with a --strong-blur above 0; leave one of them out.")
    if flags.strong_jitter_prob and not (options.jitter or options.hue):
        raise ConfigError("--strong-jitter-prob goes with a --strong-jitter or --strong-hue above 0; add one of them.")
    if not options.jitter_p and (flags.strong_jitter or flags.strong_hue):
        raise ConfigError("--strong-jitter and --strong-hue go with a --strong-jitter-prob above 0; leave them out.")
    return options


def view_options(data: DataOptions, flags: ViewFlags, model: ModelConfig) -> ViewOptions:
    """What image views are made with: the crop's options, the strong view's, the model's preprocessing. Raises ConfigError."""
    preprocess = model.preprocess
    return ViewOptions(
        model.vision.image_size, data.aug_scale, data.aug_flip, data.aug_color_jitter, data.aug_grayscale,
        data.resize_kernel, preprocess.interpolation, preprocess.resize_mode, preprocess.resize_to, data.aug_hue,
        data.aug_color_jitter_prob, data.aug_blur, data.aug_auto, strong_options(flags),
    )  # fmt: skip


def text_view_options(data: DataOptions, flags: ViewFlags) -> TextViewOptions:
    """What text views are made with."""
    return TextViewOptions(flags.synonyms, data.bad_captions)


def say_unused(data: DataOptions, wants: Wants) -> None:
    """One line of the log where options of the crop are set and no view is a crop."""
    if "crop" in wants.images:
        return
    unused = [
        _flag(item.name)
        for item in dataclasses.fields(data)
        if item.name.startswith("aug_") and getattr(data, item.name) != item.default
    ]
    if unused:
        views = ", ".join(wants.images) or "none"
        log.warn(f"{', '.join(unused)}: of the view crop, which this run does not use (its image views: {views})")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
