"""What stored weights are, and what is built from them: format, architecture, and agreement with what was asked for.

The tensor names decide the format, the format describes the architecture. The request and the weights must agree:
activation, sizes and preprocessing are compared, and a conflict is an error. No model is built here.
"""

from __future__ import annotations

import dataclasses

from diptych import log
from diptych.errors import WeightsError
from diptych.models import ModelConfig, list_models, model_config
from diptych.tensorfiles.read import Stored
from diptych.weights import _native
from diptych.weights._base import CheckpointFormat, Description, UndescribedError
from diptych.weights._infer import visible_sizes
from diptych.weights._recognize import are_ours, format_of, recognize

QUICK, OWN = "-quickgelu", "own"


def describe(stored: Stored, requested: ModelConfig | None = None) -> tuple[CheckpointFormat | None, Description]:
    """The format (None for our own) and the architecture; ``requested`` gives the heads where nothing else does."""
    if "diptych" in stored.metadata:
        return None, Description(_native.config_in(stored), "its metadata", preprocess_known=True)
    if requested is not None and are_ours(stored.tensors) and format_of(stored) is None:
        return None, Description(requested, "--model", activation_known=False)
    checkpoint_format = recognize(stored)
    try:
        description = checkpoint_format.describe(stored)
    except UndescribedError:
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

    It has a bias where the weights have one. A preset's bare name takes the activation that the weights certainly have, with a
    line in the log. Raises WeightsError when the weights contradict the request, or when nothing says their activation.
    """
    config = description.config
    if requested is None:
        if not description.activation_known:
            raise WeightsError(
                f"{where}: nothing says whether these weights want GELU or QuickGELU, and a wrong guess ruins them silently; "
                f"say --model {' or --model '.join(_presets_like(config)) or 'NAME'}."
            )
        return config
    if visible_sizes(requested) != visible_sizes(config) and not _equal_but_context(requested, config):
        held = f"a {config.name!r}" if config.name in list_models() else "an architecture of its own"
        raise WeightsError(
            f"{where} holds {held}, which is not the architecture of --model {requested.name!r} "
            f"({_differences(requested, config)}); {_advice(config)}"
        )
    if description.activation_known and requested.activation != config.activation:
        requested = _with_activation(requested, description, where)
    preprocess = config.preprocess if description.preprocess_known else requested.preprocess
    requested = _with_tokenizer(requested, config)
    return dataclasses.replace(requested, preprocess=preprocess, logit_bias=config.logit_bias)


def _with_tokenizer(requested: ModelConfig, config: ModelConfig) -> ModelConfig:
    """The request with the weights' tokenizer, where either has a vocabulary of its own."""
    if OWN not in (requested.text.tokenizer, config.text.tokenizer):
        return requested
    theirs = config.text
    text = dataclasses.replace(
        requested.text,
        tokenizer=theirs.tokenizer,
        start_id=theirs.start_id,
        end_id=theirs.end_id,
        pad_id=theirs.pad_id,
    )
    return dataclasses.replace(requested, text=text)


def _with_activation(requested: ModelConfig, description: Description, where: str) -> ModelConfig:
    """The requested architecture with the activation of the weights. Raises WeightsError when the request names another."""
    config = description.config
    if requested.name.endswith(QUICK):
        raise WeightsError(
            f"{where}: trained with {config.activation} (says {description.origin}), but --model {requested.name} asks for "
            f"{requested.activation}; {_advice(config)}"
        )
    name = f"{requested.name}{QUICK}" if config.activation == "quickgelu" else requested.name
    name = name if name in list_models() else requested.name
    log.info(
        f"{where}: trained with {config.activation} (says {description.origin}): --model {requested.name} is built with it"
        f"{f', as {name}' * (name != requested.name)}."
    )
    text = dataclasses.replace(requested.text, activation=config.text.activation)
    return dataclasses.replace(requested, name=name, activation=config.activation, text=text)


def _presets_like(config: ModelConfig) -> list[str]:
    """The presets of the same sizes, at whatever image size: those of the config's own first, bare names before others."""
    names = [name for name in list_models() if visible_sizes(model_config(name)) == visible_sizes(config)]
    same = [name for name in names if model_config(name).vision.image_size == config.vision.image_size]
    return (same or names)[:10]


def _advice(config: ModelConfig) -> str:
    """What to say in place of a wrong --model."""
    like = [name for name in _presets_like(config) if model_config(name).activation == config.activation]
    if like:
        return f"use --model {like[0]}, or leave --model out."
    return "leave --model out: the architecture is then the weights' own."


def _equal_but_context(requested: ModelConfig, config: ModelConfig) -> bool:
    text = dataclasses.replace(config.text, context_length=requested.text.context_length)
    return visible_sizes(dataclasses.replace(config, text=text)) == visible_sizes(requested)


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
