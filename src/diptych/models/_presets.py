"""The architectures that Diptych knows by name: tables in ``presets/*.toml``.

A table may begin with ``like = "OTHER"`` and then says only what differs. OpenAI's own spellings are names too, and mean
the architecture with QuickGELU, which those weights were trained with. Data only: no weights, and no code per model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from diptych import config as options
from diptych.errors import ConfigError
from diptych.models._config import ModelConfig, model_config_from_dict
from diptych.registry import did_you_mean

FOLDER = Path(__file__).parent / "presets"
OPENAI_NAMES = {
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}


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
    """The architecture called ``name``. Raises ConfigError, with the nearest name, for an unknown one."""
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
