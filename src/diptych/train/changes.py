"""Changes to a model before it is trained, as an ordered list: stretched positions, locks, patch dropout, checkpointing.

Each says whether the options ask for it, what it does to the architecture before weights are loaded, what to the model after,
and how the result is exported, so that a run's own ``model.safetensors`` can always be read back. What adds parameters
(adapters) stands before the locks, and merges them or leaves them out in ``export``. No change knows another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from diptych import log
from diptych.config import Count, Share
from diptych.errors import ConfigError
from diptych.models import ModelConfig, TwoTower, model_config_from_dict, parameter_groups


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it differs from its preset."""

    model: str = ""
    """Architecture (diptych models lists them), or local-dir:FOLDER; empty is that of --pretrained, without it ViT-B-32."""
    pretrained: str = ""
    """Weights to start from, in any format: a file, a folder, a run, a name of the catalog; empty starts from random weights."""
    force_image_size: Count = 0
    """Train at another image size, in pixels; learned positions are stretched to it. 0 leaves the architecture's own."""
    force_context_length: Count = 0
    """Train on captions of at most this many tokens; learned positions are stretched to it. 0 leaves the architecture's own."""
    force_quick_gelu: bool = False
    """Build the model with QuickGELU; weights that were certainly trained with another activation are refused."""
    image_mean: tuple[float, ...] = ()
    """Mean of the pixels in 0..1, three numbers or one for all colors; none takes the architecture's or the weights' own."""
    image_std: tuple[float, ...] = ()
    """Standard deviation of the pixels, likewise."""
    image_interpolation: Literal["", "bicubic", "bilinear"] = ""
    """How images are resized; empty takes the architecture's or the weights' own."""
    image_resize_mode: Literal["", "shortest", "longest", "squash"] = ""
    """What evaluation does with an image that is no square: cropped, padded with black, or squashed; likewise."""
    image_resize_to: Count = 0
    """To how many pixels evaluation resizes the short side before it crops (256 before 224 in DeCLIP's family); likewise."""
    lock_image: bool = False
    """Leave the image tower as it is, and train the text tower only (LiT)."""
    lock_image_unlocked_groups: Count = 0
    """With --lock-image: train its last so many groups: projection, last block with its norm, further blocks, embeddings."""
    lock_text: bool = False
    """Leave the text tower as it is."""
    lock_text_unlocked_layers: Count = 0
    """With --lock-text: train its last so many groups: projection, last block with its norm, further blocks, embeddings."""
    lock_patch_embedding: bool = False
    """Leave a ViT's embedding of patches as it is, also at random (MoCo v3; DeCLIP's family has it so)."""
    force_patch_dropout: Share = 0.0
    """Share of patches that a ViT leaves out of every training image (FLIP); another recipe, about twice as fast at 0.5."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    cache_features: bool = False
    """With --lock-image: encode every image once, preprocessed as in evaluation, and never decode it again."""

    @property
    def locks_whole_image(self) -> bool:
        """Whether nothing of the image tower is trained."""
        return self.lock_image and not self.lock_image_unlocked_groups

    @property
    def locks_whole_text(self) -> bool:
        """Whether nothing of the text tower is trained."""
        return self.lock_text and not self.lock_text_unlocked_layers


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


class StretchedContext(ModelChange):
    """``--force-context-length``: another number of tokens; loading stretches the table of positions."""

    def applies(self, options: ModelOptions) -> bool:
        """Where a length is given."""
        return options.force_context_length > 0

    def before_weights(self, config: ModelConfig, options: ModelOptions) -> ModelConfig:
        """The config with that length. Raises ConfigError for less than two tokens, which mark a caption's ends."""
        length, values = options.force_context_length, config.to_dict()
        if length < 3:
            raise ConfigError(f"--force-context-length {length}: expected at least 3, two of which mark the ends.")
        values["text"]["context_length"] = length
        return model_config_from_dict(values, f"--force-context-length {length}")


class QuickGelu(ModelChange):
    """``--force-quick-gelu``: the activation of OpenAI's weights, which a bare name does not have."""

    def applies(self, options: ModelOptions) -> bool:
        """Where it is asked for."""
        return options.force_quick_gelu

    def before_weights(self, config: ModelConfig, options: ModelOptions) -> ModelConfig:
        """The config with that activation. Raises ConfigError for a text tower with an activation of its own."""
        if config.text.activation is not None:
            raise ConfigError(
                f"--force-quick-gelu: the text tower of {config.name} has {config.text.activation}; leave it out."
            )
        return dataclasses.replace(config, activation="quickgelu")

    def after_weights(self, model: TwoTower, options: ModelOptions) -> None:
        """Raise ConfigError where the weights brought another activation."""
        if model.config.activation != "quickgelu":
            raise ConfigError(
                f"--force-quick-gelu: {options.pretrained} was trained with {model.config.activation}; leave it out."
            )


class OwnPreprocess(ModelChange):
    """``--image-mean`` and its like: pixels prepared otherwise than the architecture or the weights say."""

    def applies(self, options: ModelOptions) -> bool:
        """Where one of them is given. Raises ConfigError for another number of values than 1 or 3, and for a std of 0."""
        for flag, values in (("--image-mean", options.image_mean), ("--image-std", options.image_std)):
            if len(values) not in (0, 1, 3):
                raise ConfigError(
                    f"{flag} {' '.join(map(str, values))}: expected three numbers, or one for all colors."
                )
        if any(value <= 0 for value in options.image_std):
            raise ConfigError(f"--image-std {' '.join(map(str, options.image_std))}: expected numbers above 0.")
        return bool(_preprocess_of(options))

    def after_weights(self, model: TwoTower, options: ModelOptions) -> None:
        """Change the config of the model and the statistics in its image tower."""
        before = model.config.preprocess
        preprocess = dataclasses.replace(before, **_preprocess_of(options))
        size = model.config.vision.image_size
        if options.image_resize_to and options.image_resize_to < size:
            raise ConfigError(
                f"--image-resize-to {options.image_resize_to}: the model takes {size} pixels of it; give at least {size}."
            )
        if options.image_resize_to and preprocess.resize_mode != "shortest":
            raise ConfigError(
                f"--image-resize-to goes with --image-resize-mode shortest, which crops, not with {preprocess.resize_mode}."
            )
        if options.pretrained and preprocess != before:
            log.warn(f"{options.pretrained}: trained with another preprocessing ({before}); now {preprocess}.")
        model.set_preprocess(preprocess)


def _preprocess_of(options: ModelOptions) -> dict[str, Any]:
    """What the options say of preprocessing, by field of ``PreprocessConfig``."""
    values: dict[str, Any] = {
        "interpolation": options.image_interpolation,
        "resize_mode": options.image_resize_mode,
        "resize_to": options.image_resize_to,
    }
    for name, numbers in (("mean", options.image_mean), ("std", options.image_std)):
        values[name] = numbers * 3 if len(numbers) == 1 else numbers
    return {name: value for name, value in values.items() if value}


class Locks(ModelChange):
    """``--lock-image`` and ``--lock-text``: no gradient, and evaluation mode (Zhai et al. 2022, "LiT")."""

    def applies(self, options: ModelOptions) -> bool:
        """Where a tower is locked. Raises ConfigError when nothing is left to train, or features of a moving tower are cached."""
        if options.lock_image_unlocked_groups and not options.lock_image:
            raise ConfigError("--lock-image-unlocked-groups goes with --lock-image; add it.")
        if options.lock_text_unlocked_layers and not options.lock_text:
            raise ConfigError("--lock-text-unlocked-layers goes with --lock-text; add it.")
        if options.locks_whole_image and options.locks_whole_text:
            raise ConfigError("--lock-image and --lock-text together leave nothing to train; give one of them.")
        if options.cache_features and not options.locks_whole_image:
            raise ConfigError(
                "--cache-features needs --lock-image: features of a tower that is trained change every step."
            )
        return options.lock_image or options.lock_text

    def after_weights(self, model: TwoTower, options: ModelOptions) -> None:
        """Lock the towers. Raises ConfigError where so many groups are left that nothing is locked, and for a ResNet's."""
        image, text = options.lock_image_unlocked_groups, options.lock_text_unlocked_layers
        if image and model.config.vision.family == "resnet":
            raise ConfigError(
                f"--lock-image-unlocked-groups: {model.config.name} is a ResNet, which is locked as a whole; leave it out."
            )
        for flag, tower, unlocked in (("--lock-image", model.image, image), ("--lock-text", model.text, text)):
            count = len(parameter_groups(tower))
            if unlocked >= count:
                raise ConfigError(
                    f"{flag}: {unlocked} of {count} groups unlocked lock nothing; give less, or leave it out."
                )
        model.lock(options.lock_image, options.lock_text, image, text)


class LockedPatchEmbedding(ModelChange):
    """``--lock-patch-embedding``: a ViT's first layer stays as it is, which steadies training (Chen et al. 2021, "MoCo v3")."""

    def applies(self, options: ModelOptions) -> bool:
        """Where it is asked for. Raises ConfigError for a tower that is locked as a whole."""
        if options.lock_patch_embedding and options.locks_whole_image:
            raise ConfigError(
                "--lock-patch-embedding: --lock-image locks the whole image tower; leave one of them out."
            )
        return options.lock_patch_embedding

    def after_weights(self, model: TwoTower, options: ModelOptions) -> None:
        """Lock it. Raises ConfigError for a tower without one."""
        embedding = getattr(model.image, "patch_embedding", None)
        if embedding is None:
            raise ConfigError(
                f"--lock-patch-embedding: {model.config.name} has no embedding of patches; it needs a ViT: leave it out."
            )
        embedding.requires_grad_(False)


class PatchDropout(ModelChange):
    """``--force-patch-dropout``: a ViT leaves out patches while it trains (Li et al. 2023, "FLIP")."""

    def applies(self, options: ModelOptions) -> bool:
        """Where a share is given. Raises ConfigError for all patches, or for a tower that is not trained."""
        share = options.force_patch_dropout
        if share >= 1:
            raise ConfigError(f"--force-patch-dropout {share}: expected at least 0 and less than 1.")
        if share and options.locks_whole_image:
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


CHANGES: tuple[ModelChange, ...] = (
    StretchedPositions(), StretchedContext(), QuickGelu(), OwnPreprocess(), Locks(), LockedPatchEmbedding(), PatchDropout(),
    ActivationCheckpointing(),
)  # fmt: skip


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
