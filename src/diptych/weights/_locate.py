"""Where weights are: a path, a folder's weight file, or a name of the catalog, which is fetched.

A path always wins over a name. What the file holds is for ``_open``, but for the architecture, which a tokenizer needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from diptych.errors import WeightsError
from diptych.models import ModelConfig, model_config
from diptych.tensorfiles.read import read
from diptych.weights._base import Description
from diptych.weights._catalog import HUB, entry_for, unknown_name, weight_file_names, zoo_entry
from diptych.weights._describe import describe
from diptych.weights._download import fetch

# The first of these names that a folder holds is opened.
SEARCH = (
    "model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors.index.json",
    "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "model_state.pdparams", "ckpt.pth.tar",
)  # fmt: skip
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".pdparams")
VOCABULARIES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt")


class Location(NamedTuple):
    """A weight file on this machine, and what the catalog says of it, if it does."""

    path: Path
    known: Description | None = None


def weight_file(path: Path) -> Path:
    """The weight file that a path means: itself, or the first of a folder's. Raises WeightsError when there is none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(
            f"{path}: no such weight file; give a file, a folder that holds one, or a name of the catalog."
        )
    for name in SEARCH:
        if (path / name).is_file():
            return path / name
    # A run's folder of open_clip has its checkpoints one level down.
    epochs = sorted((path / "checkpoints").glob("epoch_*.pt"), key=lambda file: (len(file.name), file.name))
    if epochs:
        return epochs[-1]
    candidates = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES and file.is_file()]
    if len(candidates) == 1:
        return candidates[0]
    raise WeightsError(
        f"{path}: no {SEARCH[0]} in this folder, nor any other weight file that Diptych knows; has the run ended? "
        "A checkpoint of training is no weight file."
    )


def locate(source: str, model: str = "") -> Location:
    """The weight file of ``source``, fetched if it has to be; ``model`` completes a tag.

    Raises WeightsError when nothing is known under that name.
    """
    path = Path(source).expanduser()
    if path.exists():
        return Location(weight_file(path), _known_zoo_folder(path))
    entry = entry_for(source, model)
    if entry is not None:
        return Location(fetch(entry.repo, weight_file_names()), entry.description)
    if source.startswith(HUB):
        names = ("model.safetensors", "model.safetensors.index.json", *weight_file_names())
        return Location(fetch(source.removeprefix(HUB), names))
    if path.suffix or "/" in source.strip("/").partition("/")[2]:
        return Location(weight_file(path))
    raise unknown_name(source, model)


def _known_zoo_folder(path: Path) -> Description | None:
    """A folder of PaddleMIX's zoo says too little about itself; its name is the catalog's."""
    folder = path if path.is_dir() else path.parent
    entry = zoo_entry(folder.name) if list(folder.glob("*.pdparams")) else None
    return None if entry is None else entry.description


def config_at(source: str) -> ModelConfig:
    """The architecture of a path, a name of the catalog or a preset's. Raises ConfigError, WeightsError."""
    path = Path(source).expanduser()
    if path.exists():
        return describe(read(weight_file(path)))[1].config
    entry = entry_for(source)
    return entry.config if entry is not None else model_config(source)


def vocabulary_file(source: str) -> Path | None:
    """The vocabulary beside weights, fetched for a name of the catalog; None when there is none."""
    path = Path(source).expanduser()
    if source and path.exists():
        folder = path if path.is_dir() else path.parent
        return next((folder / name for name in VOCABULARIES if (folder / name).is_file()), None)
    entry = entry_for(source)
    return fetch(entry.repo, VOCABULARIES) if entry is not None else None
