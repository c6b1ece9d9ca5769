"""Diptych's one-line errors that are also of the class that open_clip raises in the same situation, for ``except`` clauses."""

from __future__ import annotations

from diptych.errors import ConfigError, WeightsError


class ModelError(ConfigError, RuntimeError):
    """An unknown architecture, tag or file; open_clip raises RuntimeError."""


class MissingError(WeightsError, FileNotFoundError):
    """A folder or file that is not there; open_clip raises FileNotFoundError."""

    def __str__(self) -> str:
        """The message alone: an OSError with one argument is its text."""
        return str(self.args[0]) if self.args else ""


class InvalidError(ConfigError, ValueError):
    """A config that cannot be read; open_clip raises ValueError."""


class MissingPackageError(ConfigError, ModuleNotFoundError):
    """A package that is not installed; open_clip's import of it raises ModuleNotFoundError."""
