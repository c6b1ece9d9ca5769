"""Weights in and out: ``load`` and ``create`` take any checkpoint format, ``save`` writes our own, ``convert`` any other.

A format is one file of this folder. ``create_model_and_transforms``, ``get_tokenizer`` and ``list_pretrained`` are the names
that open_clip's users know. No weight file is ever unpickled by Python's own unpickler.
"""

from __future__ import annotations

from pathlib import Path

import torch

from diptych.devices import get_device
from diptych.errors import WeightsError
from diptych.files import StrPath
from diptych.models import ModelConfig, TwoTower, create_model
from diptych.text import Tokenizer
from diptych.text import get_tokenizer as tokenizer_by_name
from diptych.weights._base import CHECKPOINT_FORMATS, CheckpointFormat, Description
from diptych.weights._catalog import Entry, catalog
from diptych.weights._convert import Parity, convert, format_names
from diptych.weights._inspect import inspect_file
from diptych.weights._load import DEFAULT_MODEL, Precision, choose, create, is_source, load
from diptych.weights._locate import config_at, vocabulary_file
from diptych.weights._native import WEIGHT_FILE, save, save_state
from diptych.weights._open_clip_state import OpenClipState, open_clip_config, open_clip_names, open_clip_state
from diptych.weights._preprocess import Preprocess, eval_transform, transforms
from diptych.weights._vocabulary import check_size, copy_vocabulary


def create_model_and_transforms(
    model_name: str,
    pretrained: StrPath | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
) -> tuple[TwoTower, Preprocess, Preprocess]:
    """A model in evaluation mode, its training preprocessing and its evaluation preprocessing, as open_clip returns them.

    ``pretrained`` is a tag of the catalog, a weight file or a folder; None gives random weights, in fp32, but those of its
    folder for ``local-dir:FOLDER`` and of its repository for ``hf-hub:OWNER/NAME``, as in open_clip. The preprocessing
    takes a PIL image and gives uint8 [3, H, W]. Raises ConfigError, WeightsError, DeviceError.
    """
    if pretrained:
        model = load(pretrained, model=model_name, device=device, precision=precision)
    elif is_source(model_name):
        model = load(model_name, device=device, precision=precision)
    else:
        model = create_model(model_name).to(get_device(device).torch_device).eval()
    return (model, *transforms(model.config))


def get_tokenizer(source: StrPath) -> Tokenizer:
    """The tokenizer of an architecture (by name) or of weights (a path, or a name of the catalog): texts -> int64 [B, L].

    SigLIP's vocabularies come with the weights: give the folder that holds them. Raises ConfigError, WeightsError.
    """
    return tokenizer_of(config_at(source), source)


def tokenizer_of(config: ModelConfig, source: StrPath = "") -> Tokenizer:
    """The tokenizer that a model of this config needs; its vocabulary is beside the weights at ``source``.

    Raises WeightsError when the vocabulary is another model's, ConfigError when it is not there.
    """
    text, name = config.text, config.text.tokenizer
    if name == "bpe":
        special = {} if text.mask_id is None else {"mask_id": text.mask_id}
        tokenizer = tokenizer_by_name(name, text.context_length, None, **special)
    else:
        vocabulary = vocabulary_file(source)
        if vocabulary is None and name == "own":
            raise WeightsError(
                f"{source or config.name}: its vocabulary of {text.vocab_size:,} tokens is not OpenAI's 49,408, and no "
                "tokenizer.json (or vocab.json with merges.txt) lies beside the weights; put it there."
            )
        ids = {"start_id": text.start_id, "end_id": text.end_id, "pad_id": text.pad_id} if name == "own" else {}
        tokenizer = tokenizer_by_name(
            name, text.context_length, vocabulary, **{key: number for key, number in ids.items() if number is not None}
        )
    if name in ("bpe", "own") or tokenizer.vocab_size > text.vocab_size:
        check_size(source or config.name, tokenizer.vocab_size, text.vocab_size)
    return tokenizer


def save_vocabulary(config: ModelConfig, source: StrPath, folder: StrPath) -> None:
    """Copy the vocabulary beside the weights at ``source`` into a run's folder; OpenAI's is everywhere already."""
    if config.text.tokenizer != "bpe":
        copy_vocabulary(vocabulary_file(source), Path(folder))


def list_pretrained() -> list[tuple[str, str]]:
    """Architecture and tag of all published weights that the catalog knows, sorted, as open_clip lists them."""
    return sorted((entry.model, entry.tag) for entry in catalog().values())


__all__ = [
    "CHECKPOINT_FORMATS",
    "DEFAULT_MODEL",
    "WEIGHT_FILE",
    "CheckpointFormat",
    "Description",
    "Entry",
    "OpenClipState",
    "Parity",
    "Precision",
    "Preprocess",
    "catalog",
    "choose",
    "convert",
    "create",
    "create_model_and_transforms",
    "eval_transform",
    "format_names",
    "get_tokenizer",
    "inspect_file",
    "list_pretrained",
    "load",
    "open_clip_config",
    "open_clip_names",
    "open_clip_state",
    "save",
    "save_state",
    "save_vocabulary",
    "tokenizer_of",
    "transforms",
]
