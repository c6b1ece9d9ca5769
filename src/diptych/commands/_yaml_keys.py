"""The keys of a nested configuration, taken one after the other, so that what nobody takes can be named; and the flags so far.

Keys are spelled with dots (``data.train.root_dir``); entries of a list of sections have their number (``data.test.0.type``). An
empty value counts as absent. It knows no key by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from diptych.errors import ConfigError


class Keys:
    """``path`` begins each error. ``flags`` are those of ours so far, ``dropped`` lines on what has no effect here."""

    def __init__(self, path: str, tree: Mapping[str, Any]) -> None:
        self.path, self.flags = path, list[str]()
        self.dropped: list[str] = []
        self._values = _flat(tree)
        self._taken: set[str] = set()

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key."""
        self._taken.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def number(self, key: str, default: float | None = None) -> float | None:
        """The number of a key. Raises ConfigError for what is none."""
        value = self.take(key, default)
        if value is None:
            return None
        try:
            # YAML 1.1 reads 1e-4, without a point, as text.
            return float(value) if not isinstance(value, bool | list) else _no_number()
        except (TypeError, ValueError):
            raise self.error(key, "expected a number") from None

    def whole(self, key: str) -> int | None:
        """The whole number of a key. Raises ConfigError for what is none."""
        value = self.number(key)
        if value is not None and value != int(value):
            raise self.error(key, "expected a whole number")
        return None if value is None else int(value)

    def has(self, section: str) -> bool:
        """Whether a section, or a key, has any value."""
        return any(key == section or key.startswith(section + ".") for key in self._values)

    def flag(self, name: str, *values: Any) -> None:
        """Add a flag of ours."""
        self.flags += [name, *(f"{value:g}" if isinstance(value, float) else str(value) for value in values)]

    def drop(self, key: str, reason: str) -> None:
        """Take a key, or all keys of a section, and say why it has no effect, where it is there."""
        own = [name for name in self._values if name == key or name.startswith(key + ".")]
        self._taken.update(own)
        if any(self._values[name] is not None for name in own):
            self.dropped.append(f"{key} is dropped: {reason}")

    def only(self, key: str, allowed: Collection[Any], reason: str) -> None:
        """Take a key that may have these values alone. Raises ConfigError with the reason."""
        value = self.take(key)
        if value is not None and not any(value == item for item in allowed):  # a list is in no dictionary
            raise self.error(key, reason)

    def error(self, key: str, reason: str) -> ConfigError:
        """An error about the value of a key."""
        value = self._values.get(key)
        return ConfigError(f"{self.path}: {key}{'' if value is None else f' {value!r}'}: {reason}.")

    def unknown(self) -> list[str]:
        """Keys that nobody took."""
        return [key for key in self._values if key not in self._taken]


def _no_number() -> float:
    raise TypeError


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Leaf values by dotted keys; sections that stand in a list are numbered."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
