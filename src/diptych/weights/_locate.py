"""Where weights are: a path, a folder's weight file, or a name of the catalog, which is fetched.

A path always wins over a name. What the file holds is for ``_open``, but for the architecture, which a tokenizer needs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from diptych.files import StrPath
from diptych.models import ModelConfig, model_config
from diptych.tensorfiles.manifest import MANIFEST
from diptych.weights._adapter import base_of, is_adapter
from diptych.weights._base import Description
from diptych.weights._catalog import HUB, entry_for, unknown_name, weight_file_names, zoo_entry
from diptych.weights._describe import describe, target_config
from diptych.weights._download import fetch
from diptych.weights._folder import weight_file
from diptych.weights._state_dict import read_model

VOCABULARIES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt", "vocab.json")
LOCAL = "local-dir:"


class Location(NamedTuple):
    """A weight file on this machine; what the catalog says of it, if it does; which of its state dicts; lines to say."""

    path: Path
    known: Description | None = None
    which: str = ""
    remarks: tuple[str, ...] = ()


def split_source(source: StrPath) -> tuple[str, str]:
    """A source without ``local-dir:``, and what stands after ``#``: ``FILE#ema`` is (FILE, ema). A path with a # is a path."""
    plain = os.fspath(source).removeprefix(LOCAL)
    name, mark, which = plain.rpartition("#")
    return (name, which) if mark and name and not Path(plain).expanduser().exists() else (plain, "")


def locate(source: StrPath, model: str = "") -> Location:
    """The weight file of ``source``, fetched if it has to be; ``model`` completes a tag.

    Raises WeightsError when nothing is known under that name.
    """
    name, which = split_source(source)
    path = Path(name).expanduser()
    if path.exists() or os.fspath(source).startswith(LOCAL):
        choice = weight_file(path)
        return Location(choice.path, _known_zoo_folder(path), which, choice.remarks)
    entry = entry_for(name, model)
    if entry is not None:
        return Location(fetch(entry.repo, weight_file_names()), entry.description, which)
    if name.startswith(HUB):
        names = ("model.safetensors", "model.safetensors.index.json", *weight_file_names())
        return Location(fetch(name.removeprefix(HUB), names), None, which)
    if path.suffix or "/" in name.strip("/").partition("/")[2]:
        return Location(weight_file(path).path)
    raise unknown_name(name, model)


def _known_zoo_folder(path: Path) -> Description | None:
    """A folder of PaddleMIX's zoo says too little about itself; its name is the catalog's."""
    folder = path if path.is_dir() else path.parent
    entry = zoo_entry(folder.name) if list(folder.glob("*.pdparams")) else None
    return None if entry is None else entry.description


def config_at(source: StrPath, model: str = "") -> ModelConfig:
    """The architecture of a path, a name of the catalog or hub, or a preset's. Raises ConfigError, WeightsError."""
    name, which = split_source(source)
    entry = None if Path(name).expanduser().exists() else entry_for(name, model)
    if entry is not None:
        return entry.config
    if Path(name).expanduser().exists() or name.startswith(HUB) or which or os.fspath(source).startswith(LOCAL):
        location = locate(source, model)
        return describe(read_model(location.path, location.which).stored)[1].config
    return model_config(name)


def own_config(source: StrPath) -> ModelConfig:
    """The architecture of weights, to build it by them alone. Raises WeightsError when nothing says their activation."""
    location = locate(source)
    if location.known is not None:
        return location.known.config
    description = describe(read_model(location.path, location.which).stored)[1]
    return target_config(description, None, str(location.path))


def vocabulary_folder(source: StrPath) -> Path | None:
    """The folder on this machine that holds the vocabulary of weights: beside them, or the run's of a checkpoint."""
    name, _ = split_source(source)
    path = Path(name).expanduser()
    if not name or not path.exists():
        return None
    file = weight_file(path).path
    checkpoint = file.parent if file.name == MANIFEST else file
    folders = [file.parent, checkpoint.parent.parent] if checkpoint.parent.name == "checkpoints" else [file.parent]
    folders += [path] if path.is_dir() else []
    folders += [base_of(file)] if is_adapter(file) else []
    return next((folder for folder in folders if any((folder / known).is_file() for known in VOCABULARIES)), None)


def vocabulary_file(source: StrPath) -> Path | None:
    """The vocabulary beside weights, fetched for a name of the catalog or hub; None when there is none."""
    folder = vocabulary_folder(source)
    if folder is not None:
        return next(folder / known for known in VOCABULARIES if (folder / known).is_file())
    name, _ = split_source(source)
    entry = entry_for(name) if name and not Path(name).expanduser().exists() else None
    if entry is not None:
        return fetch(entry.repo, VOCABULARIES)
    return fetch(name.removeprefix(HUB), VOCABULARIES) if name.startswith(HUB) else None
