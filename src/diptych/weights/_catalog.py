"""What the catalogue knows, and where weights lie: names to entries, entries to files.

``catalog.toml`` holds the facts. A name may be ``ARCHITECTURE/TAG``, a tag with the architecture given apart, a zoo's name,
a hub repository, or a path, which always wins. Fetching is ``_download``'s.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from diptych.config import from_dict
from diptych.errors import WeightsError
from diptych.models import ModelConfig, model_config
from diptych.models._config import PreprocessConfig
from diptych.registry import did_you_mean
from diptych.weights._format import Found

FILE = Path(__file__).parent / "catalog.toml"
HUB = "hf-hub:"
VOCABULARIES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt")


@dataclass(frozen=True)
class Entry:
    """Published weights. ``architecture`` is the preset, ``model`` the name that open_clip lists them under."""

    model: str
    tag: str
    architecture: str
    repo: str
    preprocess: PreprocessConfig
    licence: str
    zoo: str = ""
    imagenet_top1: float | None = None
    original: str = ""
    original_sha256: str = ""

    @property
    def config(self) -> ModelConfig:
        """The architecture, with the preprocessing that these weights were trained with."""
        return replace(model_config(self.architecture), preprocess=self.preprocess)


class Place(NamedTuple):
    """A file or folder on this machine, and what the catalogue says of it, if it does."""

    path: Path
    found: Found | None = None


@cache
def _catalogue() -> tuple[Mapping[str, Entry], tuple[str, ...]]:
    table = tomllib.loads(FILE.read_text(encoding="utf-8"))
    looks = {name: from_dict(PreprocessConfig, look, FILE.name) for name, look in table["preprocess"].items()}
    found = {}
    for name, facts in table["weights"].items():
        model, _, tag = name.partition("/")
        found[name] = Entry(model, tag, **{**facts, "preprocess": looks[facts["preprocess"]]})
    return found, tuple(table["files"])


def entries() -> Mapping[str, Entry]:
    """All entries, by ``ARCHITECTURE/TAG``."""
    return _catalogue()[0]


def files() -> tuple[str, ...]:
    """The names that a repository's weight file may have, best first."""
    return _catalogue()[1]


def entry_for(name: str, model: str = "") -> Entry | None:
    """The entry that a name means: ``ARCHITECTURE/TAG``, a tag of ``model``, a zoo's name, or a repository."""
    plain = model.removesuffix("-quickgelu")
    for key in (name, f"{model}/{name}", f"{plain}/{name}"):
        if key in entries():
            return entries()[key]
    wanted = name.removeprefix(HUB)
    return next((one for one in entries().values() if wanted in (one.zoo, one.repo)), None)


def located(source: str, model: str = "") -> Place:
    """Where the weights lie, fetched if they have to be. Raises WeightsError when nothing is known under that name."""
    from diptych.weights._download import fetch
    from diptych.weights._open import file_in

    path = Path(source).expanduser()
    if path.exists():
        return Place(file_in(path), _released_as_zoo(path))
    entry = entry_for(source, model)
    if entry is not None:
        return Place(fetch(entry.repo, files()), Found(entry.config, "the catalogue", True, preprocess_known=True))
    if source.startswith(HUB):
        return Place(fetch(source.removeprefix(HUB), ("model.safetensors", "model.safetensors.index.json", *files())))
    if path.suffix or "/" in source.strip("/").partition("/")[2]:
        return Place(file_in(path))
    tags = sorted(one.tag for one in entries().values() if one.model == model.removesuffix("-quickgelu"))
    if model and tags and "/" not in source:
        raise WeightsError(f"no such file, and {did_you_mean(source, tags, f'weights of {model}')}")
    raise WeightsError(
        f"{source}: no such weight file, and {did_you_mean(source, [*entries(), *_zoo()], 'name of the catalogue')} "
        f"Another repository of the Hugging Face hub is written {HUB}OWNER/NAME."
    )


def _zoo() -> list[str]:
    return [one.zoo for one in entries().values() if one.zoo]


def _released_as_zoo(path: Path) -> Found | None:
    """A folder of PaddleMIX's zoo says too little about itself; its name is the catalogue's."""
    folder = path if path.is_dir() else path.parent
    if not list(folder.glob("*.pdparams")):
        return None
    entry = next((one for one in entries().values() if one.zoo and one.zoo == folder.name), None)
    return Found(entry.config, "the catalogue", True, preprocess_known=True) if entry else None


def config_of(source: str) -> ModelConfig:
    """The architecture behind a path, a name of the catalogue or a preset's. Raises ConfigError, WeightsError."""
    from diptych.tensorfiles.read import read
    from diptych.weights._open import described, file_in

    path = Path(source).expanduser()
    if path.exists():
        return described(read(file_in(path)))[1].config
    entry = entry_for(source)
    return entry.config if entry is not None else model_config(source)


def vocabulary_at(source: str) -> Path | None:
    """The vocabulary file that lies with weights, fetched for a name of the catalogue; None when there is none."""
    from diptych.weights._download import fetch

    path = Path(source).expanduser()
    if source and path.exists():
        folder = path if path.is_dir() else path.parent
        return next((folder / name for name in VOCABULARIES if (folder / name).is_file()), None)
    entry = entry_for(source)
    return fetch(entry.repo, VOCABULARIES) if entry is not None else None
