"""Changes to a model before it is trained, as an ordered list: stretched positions, locks, patch dropout, checkpointing.

Each says whether the options ask for it, what it does to the architecture before weights are loaded, what to the model after,
and how the result is exported, so that a run's own ``model.safetensors`` can always be read back. What adds parameters
(adapters) stands before the locks, and merges them or leaves them out in ``export``. No change knows another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from diptych import log
from diptych.config import Count, Share
from diptych.errors import ConfigError
from diptych.models import ModelConfig, TwoTower, model_config_from_dict


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it differs from its preset."""

    model: str = ""
    """Architecture (diptych models lists them), or local-dir:FOLDER; empty is that of --pretrained, without it ViT-B-32."""
    pretrained: str = ""
    """Weights to start from, in any format: a file, a folder, a run, a name of the catalog; empty starts from random weights."""
    force_image_size: Count = 0
    """Train at another image size, in pixels; learned positions are stretched to it. 0 leaves the architecture's own."""
    lock_image: bool = False
    """Leave the image tower as it is, and train the text tower only (LiT)."""
    lock_text: bool = False
    """Leave the text tower as it is."""
    force_patch_dropout: Share = 0.0
    """Share of patches that a ViT leaves out of every training image (FLIP); another recipe, about twice as fast at 0.5."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    cache_features: bool = False
    """With --lock-image: encode every image once, preprocessed as in evaluation, and never decode it again."""


class ModelChange:
    """One change. A subclass overrides what it needs; the order of ``CHANGES`` is the order of application."""

    def applies(self, options: ModelOptions) -> bool:
        """Whether the options ask for it. Raises ConfigError for options that cannot be."""
        raise NotImplementedError

    def before_weights(self, config: ModelConfig, options: ModelOptions) -> ModelConfig:
        """The architecture that weights are loaded into."""
        return config

    def after_weights(self, model: TwoTower, options: ModelOptions) -> None:
        """Change the model in place; its weights are loaded, its objective is not built yet."""

    def export(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names and tensors of the model's architecture, from those of the changed model."""
        return state


class StretchedPositions(ModelChange):
    """``--force-image-size``: another number of patches; loading stretches the table of positions."""

    def applies(self, options: ModelOptions) -> bool:
        """Where a size is given."""
        return options.force_image_size > 0

    def before_weights(self, config: ModelConfig, options: ModelOptions) -> ModelConfig:
        """The config with that image size. Raises ConfigError for one that the tower cannot take."""
        size, values = options.force_image_size, config.to_dict()
        preprocess = config.preprocess
        if preprocess.resize_to:  # images are resized somewhat larger than the crop: by the same factor
            values["preprocess"]["resize_to"] = round(preprocess.resize_to * size / config.vision.image_size)
        values["vision"]["image_size"] = size
        return model_config_from_dict(values, f"--force-image-size {size}")


class Locks(ModelChange):
    """``--lock-image`` and ``--lock-text``: no gradient, and evaluation mode (Zhai et al. 2022, "LiT")."""

    def applies(self, options: ModelOptions) -> bool:
        """Where a tower is locked. Raises ConfigError when nothing is left to train, or features of a moving tower are cached."""
        if options.lock_image and options.lock_text:
            raise ConfigError("--lock-image and --lock-text together leave nothing to train; give one of them.")
        if options.cache_features and not options.lock_image:
            raise ConfigError(
                "--cache-features needs --lock-image: features of a tower that is trained change every step."
            )
        return options.lock_image or options.lock_text

    def after_weights(self, model: TwoTower, options: ModelOptions) -> None:
        """Lock the towers."""
        model.lock(options.lock_image, options.lock_text)


class PatchDropout(ModelChange):
    """``--force-patch-dropout``: a ViT leaves out patches while it trains (Li et al. 2023, "FLIP")."""

    def applies(self, options: ModelOptions) -> bool:
        """Where a share is given. Raises ConfigError for all patches, or for a tower that is not trained."""
        share = options.force_patch_dropout
        if share >= 1:
            raise ConfigError(f"--force-patch-dropout {share}: expected at least 0 and less than 1.")
        if share and options.lock_image:
            raise ConfigError("--force-patch-dropout goes with an image tower that is trained; --lock-image locks it.")
        return share > 0

    def after_weights(self, model: TwoTower, options: ModelOptions) -> None:
        """Set the share. Raises ConfigError for a tower without patches."""
        if not hasattr(type(model.image), "patch_dropout"):
            raise ConfigError(
                f"--force-patch-dropout: {model.config.name} has no patches to leave out; it needs a ViT."
            )
        setattr(model.image, "patch_dropout", options.force_patch_dropout)  # noqa: B010 - a family's own attribute


class ActivationCheckpointing(ModelChange):
    """``--grad-checkpointing``: recompute activations in the backward pass (Chen et al. 2016)."""

    def applies(self, options: ModelOptions) -> bool:
        """Where it is asked for."""
        return options.grad_checkpointing

    def after_weights(self, model: TwoTower, options: ModelOptions) -> None:
        """Switch it on in both towers."""
        model.checkpoint_activations()


CHANGES: tuple[ModelChange, ...] = (StretchedPositions(), Locks(), PatchDropout(), ActivationCheckpointing())


def changes_of(options: ModelOptions, resumed: bool) -> tuple[ModelChange, ...]:
    """The changes that the options ask for, in order. Raises ConfigError for options that cannot be."""
    if options.lock_image and not (options.pretrained or resumed):
        log.warn("--lock-image without --pretrained locks an image tower of random weights.")
    return tuple(change for change in CHANGES if change.applies(options))


def exported(changes: Sequence[ModelChange], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of the architecture itself, from that of the changed model: each change undone, the last one first."""
    result = dict(state)
    for change in reversed(changes):
        result = change.export(result)
    return result
