"""Reading the JSON configs of other systems: typed, key by key, and nothing that Diptych lacks is passed over.

Values are checked when they are read, since a config comes from strangers. No key of any system is named here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from diptych.errors import ConfigError, WeightsError
from diptych.models import ModelConfig, model_config_from_dict

Activation = Literal["gelu", "quickgelu", "gelu_tanh"]


def read_json(path: Path) -> dict[str, object]:
    """A JSON object beside a weight file; {} when there is none. Raises WeightsError for a damaged one."""
    values = _json(path, {})
    if not isinstance(values, dict):
        raise WeightsError(f"{path}: expected a JSON object, got {type(values).__name__}.")
    return values


def read_json_list(path: Path) -> list[object]:
    """A JSON list beside a weight file; [] when there is none. Raises WeightsError for a damaged one."""
    values = _json(path, [])
    if not isinstance(values, list):
        raise WeightsError(f"{path}: expected a JSON list, got {type(values).__name__}.")
    return values


def _json(path: Path, default: object) -> object:
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not valid JSON ({str(error).splitlines()[0][:160]}).") from error


class ConfigTable:
    """One JSON object. Every getter removes its key; null counts as absent, and without a default absence is an error.

    All raise ValueError for a value of another type, or KeyError for a key that is missing.
    """

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = {key: value for key, value in values.items() if value is not None}

    def has(self, key: str) -> bool:
        """Whether the key is present and not yet read."""
        return key in self.values

    def take(self, key: str, default: object = None) -> object:
        """The value, of any type."""
        if key not in self.values and default is None:
            raise KeyError(key)
        return self.values.pop(key, default)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self.take(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{key} is {value!r}; expected a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.take(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{key} is {value!r}; expected a finite number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A finite number, or None where it is absent."""
        return self.number(key) if self.has(key) else None

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false (any JSON value, as Python takes it)."""
        return bool(self.take(key, default))

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self.take(key, default)
        if not isinstance(value, str):
            raise ValueError(f"{key} is {value!r}; expected a string")
        return value

    def table(self, key: str, default: Mapping[str, object] | None = None) -> ConfigTable:
        """An object."""
        value = self.take(key, default)
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} is {value!r}; expected an object")
        return ConfigTable(value)

    def integers(self, key: str, default: int | None = None) -> list[int]:
        """A list of whole numbers; a single number is a list of length one."""
        value = self.take(key, default)
        items = value if isinstance(value, list) else [value]
        numbers = [item for item in items if isinstance(item, int) and not isinstance(item, bool)]
        if not items or len(numbers) != len(items):
            raise ValueError(f"{key} is {value!r}; expected whole numbers")
        return numbers

    def rgb(self, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """Three finite numbers, of red, green and blue."""
        value = self.take(key, default)
        numbers = value if isinstance(value, list | tuple) else ()
        if len(numbers) != 3 or not all(isinstance(item, int | float) and math.isfinite(item) for item in numbers):
            raise ValueError(f"{key} is {value!r}; expected three numbers")
        return float(numbers[0]), float(numbers[1]), float(numbers[2])

    def refuse_rest(self, harmless: Iterable[str], where: str) -> None:
        """Raise WeightsError when a key that nobody read asks for something that Diptych's towers do not have."""
        empty: tuple[object, ...] = (False, 0, 0.0, "", {}, [])
        unknown = sorted(key for key, value in self.values.items() if key not in harmless and value not in empty)
        if unknown:
            listed = ", ".join(f"{key} = {self.values[key]!r}" for key in unknown[:4])
            raise WeightsError(f"{where}: describes a model that Diptych does not have: {listed}.")


def validated(config: ModelConfig, where: str) -> ModelConfig:
    """The config, when its values and sizes are those of a model. Raises WeightsError."""
    try:
        return model_config_from_dict(config.to_dict(), where)
    except ConfigError as error:
        raise WeightsError(str(error)) from error


def mlp_ratio(hidden: int, width: int) -> float:
    """The ``mlp_ratio`` whose product with ``width``, rounded down, is ``hidden``."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else math.nextafter((hidden + 0.5) / width, math.inf)
