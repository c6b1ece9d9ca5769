"""Changes to a model before it is trained, as an ordered list: stretched positions, locks, patch dropout, compiled blocks.

Each says whether the options ask for it, what it does to the architecture before weights are loaded, what to the model after,
and how the result is exported, so that a run's own ``model.safetensors`` can always be read back. What adds parameters
(adapters) stands before the locks, and merges them or leaves them out in ``export``. No change knows another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diptych import log
from diptych.errors import ConfigError
from diptych.models import ModelConfig, TwoTower, model_config_from_dict, parameter_groups
from diptych.registry import did_you_mean
from diptych.train.model_options import ModelOptions


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


class CompiledBlocks(ModelChange):
    """``--torchcompile``: every block of both towers is a graph of its own, the same graph for equal blocks."""

    def applies(self, options: ModelOptions) -> bool:
        """Where it is asked for. Raises ConfigError for a backend without it, and for one that torch does not know."""
        backend = options.torchcompile_backend
        if backend and not options.torchcompile:
            raise ConfigError("--torchcompile-backend goes with --torchcompile; add it.")
        if backend and backend not in torch.compiler.list_backends(exclude_tags=()):
            raise ConfigError(did_you_mean(backend, torch.compiler.list_backends(), "--torchcompile-backend"))
        return options.torchcompile

    def after_weights(self, model: TwoTower, options: ModelOptions) -> None:
        """Compile them when they are first called."""
        model.compile_blocks(options.torchcompile_backend or "inductor")


CHANGES: tuple[ModelChange, ...] = (
    StretchedPositions(), StretchedContext(), QuickGelu(), OwnPreprocess(), Locks(), LockedPatchEmbedding(), PatchDropout(),
    ActivationCheckpointing(), CompiledBlocks(),
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
