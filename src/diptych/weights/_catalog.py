"""The catalog of published weights: names to facts. Nothing is fetched and no file of weights is read.

``catalog.toml`` holds the facts. A name may be ``ARCHITECTURE/TAG``, a tag with the architecture given apart, a zoo's name,
or a hub repository.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from diptych.config import from_dict
from diptych.errors import WeightsError
from diptych.models import ModelConfig, PreprocessConfig, model_config
from diptych.registry import did_you_mean
from diptych.weights._base import Description

FILE = Path(__file__).parent / "catalog.toml"
HUB = "hf-hub:"
QUICK = "-quickgelu"


@dataclass(frozen=True)
class Entry:
    """Published weights. ``architecture`` is the preset, ``model`` the name that open_clip lists them under.

    ``imagenet_top1`` is the published zero-shot accuracy in percent, None where none was read; ``original`` the address of the
    first release.
    """

    model: str
    tag: str
    architecture: str
    repo: str
    preprocess: PreprocessConfig
    license: str
    zoo: str = ""
    imagenet_top1: float | None = None
    original: str = ""
    original_sha256: str = ""

    @property
    def config(self) -> ModelConfig:
        """The architecture, with the preprocessing that these weights were trained with."""
        return replace(model_config(self.architecture), preprocess=self.preprocess)

    @property
    def description(self) -> Description:
        """What the catalog knows of the weights."""
        return Description(self.config, "the catalog", preprocess_known=True)


@cache
def _tables() -> tuple[Mapping[str, Entry], tuple[str, ...]]:
    table = tomllib.loads(FILE.read_text(encoding="utf-8"))
    preprocess = {name: from_dict(PreprocessConfig, values, FILE.name) for name, values in table["preprocess"].items()}
    entries = {}
    for name, facts in table["weights"].items():
        model, _, tag = name.partition("/")
        entries[name] = Entry(model, tag, **{**facts, "preprocess": preprocess[facts["preprocess"]]})
    return entries, tuple(table["files"])


def catalog() -> Mapping[str, Entry]:
    """All published weights that Diptych knows, by ``ARCHITECTURE/TAG``."""
    return _tables()[0]


def weight_file_names() -> tuple[str, ...]:
    """The names that a repository's weight file may have, best first."""
    return _tables()[1]


def entry_for(name: str, model: str = "") -> Entry | None:
    """The entry that a name means: ``ARCHITECTURE/TAG``, a tag of ``model``, a zoo's name, or a repository."""
    for key in (name, f"{model}/{name}", f"{model.removesuffix(QUICK)}/{name}"):
        if key in catalog():
            return catalog()[key]
    repo = name.removeprefix(HUB)
    return next((entry for entry in catalog().values() if repo in (entry.zoo, entry.repo)), None)


def zoo_entry(name: str) -> Entry | None:
    """The entry whose folder in PaddleMIX's zoo is called ``name``."""
    return next((entry for entry in catalog().values() if entry.zoo and entry.zoo == name), None)


def unknown_name(source: str, model: str = "") -> WeightsError:
    """The error for a name that is neither a file nor in the catalog, with the nearest name."""
    tags = sorted(entry.tag for entry in catalog().values() if entry.model == model.removesuffix(QUICK))
    if model and tags and "/" not in source:
        return WeightsError(f"no such file, and {did_you_mean(source, tags, f'weights of {model}')}")
    models = sorted({entry.model for entry in catalog().values() if entry.tag == source})
    if models:
        some = ", ".join(models[:10])
        why = f"there are none for {model!r}" if model else "say which"
        return WeightsError(
            f"{source}: published weights of {len(models)} architectures, {why}: --model one of {some}."
        )
    names = [*catalog(), *(entry.zoo for entry in catalog().values() if entry.zoo)]
    return WeightsError(
        f"{source}: no such weight file, and {did_you_mean(source, names, 'name of the catalog')} "
        f"Another repository of the Hugging Face hub is written {HUB}OWNER/NAME."
    )
