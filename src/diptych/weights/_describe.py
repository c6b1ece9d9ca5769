"""What stored weights are, and what is built from them: format, architecture, and agreement with what was asked for.

The tensor names decide the format, the format describes the architecture. The request and the weights must agree:
activation, sizes and preprocessing are compared, and a conflict is an error. No model is built here.
"""

from __future__ import annotations

import dataclasses

from diptych.errors import WeightsError
from diptych.models import ModelConfig, list_models, model_config
from diptych.tensorfiles.read import Stored
from diptych.weights import _native
from diptych.weights._base import CHECKPOINT_FORMATS, CheckpointFormat, Description
from diptych.weights._infer import visible_sizes

# The most specific names first; formats of others follow.
ORDER = ("openai", "huggingface", "paddle", "declip", "openclip")


def recognize(stored: Stored) -> CheckpointFormat:
    """The format whose names these are. Raises WeightsError, with some of the names, when no format has them."""
    for name in (*ORDER, *CHECKPOINT_FORMATS.names()):
        checkpoint_format = CHECKPOINT_FORMATS.get(name)()
        if checkpoint_format.recognizes(stored):
            return checkpoint_format
    if "text.token_embedding.weight" in stored.tensors and any(name.startswith("image.") for name in stored.tensors):
        raise WeightsError(
            f"{stored.path}: Diptych's tensors without their metadata: it does not say its architecture."
        )
    some = ", ".join(sorted(stored.tensors)[:4])
    raise WeightsError(f"{stored.path}: no CLIP or SigLIP that Diptych knows; it begins with {some or 'nothing'}.")


def describe(stored: Stored, requested: ModelConfig | None = None) -> tuple[CheckpointFormat | None, Description]:
    """The format (None for our own) and the architecture; ``requested`` gives the heads where nothing else does."""
    if "diptych" in stored.metadata:
        return None, Description(_native.config_in(stored), "its metadata", preprocess_known=True)
    checkpoint_format = recognize(stored)
    try:
        description = checkpoint_format.describe(stored)
    except WeightsError:
        if requested is None:
            raise
        return checkpoint_format, Description(requested, "--model", activation_known=False)
    config = description.config
    if requested is not None and not description.heads_known and visible_sizes(requested) == visible_sizes(config):
        vision = dataclasses.replace(requested.vision, image_size=config.vision.image_size)
        config = dataclasses.replace(config, vision=vision, text=requested.text)
    return checkpoint_format, dataclasses.replace(description, config=_with_preset_name(config))


def _with_preset_name(config: ModelConfig) -> ModelConfig:
    """With the name of the preset that it equals, if there is one."""
    for name in list_models():
        preset = model_config(name)
        shared = dataclasses.replace(config, name=name, preprocess=preset.preprocess, logit_scale=preset.logit_scale)
        if shared == preset:
            return dataclasses.replace(config, name=name)
    return config


def target_config(description: Description, requested: ModelConfig | None, where: str) -> ModelConfig:
    """The config to build: the weights' architecture, at the requested image size and context length.

    It has a bias where the weights have one. Raises WeightsError when the weights contradict the request, or when nothing
    says their activation.
    """
    config = description.config
    if requested is None:
        if not description.activation_known:
            raise WeightsError(
                f"{where}: nothing says whether these weights want GELU or QuickGELU, and a wrong guess ruins them silently; "
                f"say --model {config.name} or --model {config.name}-quickgelu."
            )
        return config
    if description.activation_known and requested.activation != config.activation:
        raise WeightsError(
            f"{where}: trained with {config.activation} (says {description.origin}), but --model {requested.name} uses "
            f"{requested.activation}; use --model {_name_with(requested, config.activation)}."
        )
    if visible_sizes(requested) != visible_sizes(config) and not _equal_but_context(requested, config):
        raise WeightsError(
            f"{where} holds a {config.name!r}, which is not the architecture of --model {requested.name!r} "
            f"({_differences(requested, config)}); use --model {config.name}."
        )
    preprocess = config.preprocess if description.preprocess_known else requested.preprocess
    return dataclasses.replace(requested, preprocess=preprocess, logit_bias=config.logit_bias)


def _equal_but_context(requested: ModelConfig, config: ModelConfig) -> bool:
    text = dataclasses.replace(config.text, context_length=requested.text.context_length)
    return visible_sizes(dataclasses.replace(config, text=text)) == visible_sizes(requested)


def _name_with(config: ModelConfig, activation: str) -> str:
    """The name of the same preset with another activation."""
    base = config.name.removesuffix("-quickgelu")
    return f"{base}-quickgelu" if activation == "quickgelu" else base


def _differences(requested: ModelConfig, config: ModelConfig) -> str:
    """The first three sizes that differ."""
    differences = []
    for branch, asked, stored in (("vision", requested.vision, config.vision), ("text", requested.text, config.text)):
        asked_values = dataclasses.asdict(asked)
        for name, value in dataclasses.asdict(stored).items():
            if asked_values.get(name) != value and name != "image_size":
                differences.append(f"{branch}.{name} is {value} there, {asked_values.get(name)} asked")
    if requested.embed_dim != config.embed_dim:
        differences.append(f"embed_dim is {config.embed_dim} there, {requested.embed_dim} asked")
    return "; ".join(differences[:3]) or "their families differ"
