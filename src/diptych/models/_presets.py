"""Architectures by name, and configs from plain values: tables in ``presets/*.toml``, or what a weight file carries.

A table may begin with ``like = "OTHER"`` and then says only what differs. OpenAI's own spellings are names too, and mean
the architecture with QuickGELU, which those weights were trained with. Data only: no weights, and no code per model; a table
chooses a family of towers by name, and the family's own ``Config`` reads the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from diptych import config as options
from diptych.errors import ConfigError
from diptych.models._base import TOWERS, ImageTower, TextTower, Tower
from diptych.models._config import Activation, ModelConfig, PreprocessConfig, checked, is_known
from diptych.registry import did_you_mean

Kind = TypeVar("Kind", bound=Tower)
FOLDER = Path(__file__).parent / "presets"
OPENAI_NAMES = {
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}
CLIP_FAMILIES = {"vision": "vit", "text": "transformer"}
"""The families of a table that names none: CLIP's own."""


@cache
def _tables() -> Mapping[str, Mapping[str, Any]]:
    tables: dict[str, Mapping[str, Any]] = {}
    for path in sorted(FOLDER.glob("*.toml")):
        for name, table in options.read_toml(path).items():
            if name in tables:
                raise ConfigError(f"{path.name}: the architecture {name!r} is described twice.")
            tables[name] = table
    return tables


def list_models() -> list[str]:
    """The names of all architectures, sorted."""
    return sorted(_tables())


@cache
def model_config(name: str) -> ModelConfig:
    """The architecture called ``name``. Raises ConfigError, with the nearest name, for an unknown name."""
    known = OPENAI_NAMES.get(name, name)
    if known not in _tables():
        raise ConfigError(did_you_mean(name, list_models(), "architecture"))
    return model_config_from_dict({"name": known, **_resolved(known)}, f"preset {known}")


def _resolved(name: str) -> dict[str, Any]:
    table = dict(_tables()[name])
    base = table.pop("like", None)
    return _merged(_resolved(base), table) if base else table


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


@dataclass(frozen=True)
class _Plain:
    """The leaves of ModelConfig, for checking their names and types."""

    name: str
    embed_dim: int
    activation: Activation = ModelConfig.activation
    logit_scale: float = ModelConfig.logit_scale
    logit_bias: float | None = ModelConfig.logit_bias


def model_config_from_dict(values: Mapping[str, Any], where: str = "model config") -> ModelConfig:
    """Build a config from plain values. Raises ConfigError for an unknown or missing key, or a value that cannot be."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a table, got {values!r}.")
    rest = dict(values)
    vision_table, text_table = _table(rest, "vision", where), _table(rest, "text", where)
    image = _family(vision_table, "vision", ImageTower, where)
    text_tower = _family(text_table, "text", TextTower, where)
    vision = options.from_dict(image.Config, vision_table, f"{where}, [vision]")
    text = options.from_dict(text_tower.Config, text_table, f"{where}, [text]")
    preprocess = options.from_dict(PreprocessConfig, _table(rest, "preprocess", where), f"{where}, [preprocess]")
    plain = options.from_dict(_Plain, rest, where)
    return checked(ModelConfig(vision=vision, text=text, preprocess=preprocess, **dataclasses.asdict(plain)), where)


def _table(values: dict[str, Any], key: str, where: str) -> Mapping[str, Any]:
    table = values.pop(key, {})
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: [{key}] must be a table, got {table!r}.")
    return table


def _family(table: Mapping[str, Any], key: str, contract: type[Kind], where: str) -> type[Kind]:
    """The tower class of the family that the table names. Raises ConfigError unless it keeps ``contract``."""
    name = str(table.get("family", CLIP_FAMILIES[key]))
    tower = TOWERS.get(name) if is_known(TOWERS, name) else None
    if isinstance(tower, type) and issubclass(tower, contract):
        return tower
    known = [entry for entry in TOWERS.names() if issubclass(TOWERS.get(entry), contract)]
    raise ConfigError(f"{where}: [{key}] {did_you_mean(name, known, 'family')}")
