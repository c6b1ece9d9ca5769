"""A folder that lists itself: name -> file -> class, imported on first use.

An open folder of the project (devices, text, data, models, objectives, weights, evaluate, commands, migrate) makes one
``Registry``. Its entries are the folder's files; the file's name is the name that users type; the class inside registers
itself with the decorator. Files that begin with ``_`` are shared code, not entries. There is no central list to edit.
``my_lab.losses:Sharp`` takes a class of somebody else's.

This is not a plug-in system with hooks and priorities: one name, one file, one class.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar, cast

from diptych.errors import ConfigError

Entry = TypeVar("Entry")
Decorated = TypeVar("Decorated")


def did_you_mean(given: str, known: Iterable[str], what: str) -> str:
    """Return one line that says what was given, which known name is nearest, and what there is."""
    names = sorted(known)
    lowered = {name.lower(): name for name in names}
    near = [lowered[match] for match in difflib.get_close_matches(given.lower(), list(lowered), n=1, cutoff=0.5)]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    few = difflib.get_close_matches(given, names, n=12, cutoff=0.1) or names[:12]
    listed = names if len(names) <= 24 else [*few, "..."]
    return f"unknown {what} {given!r}.{hint} Known: {', '.join(listed) or 'none'}.".replace("....", "...")


class Registry(Generic[Entry]):
    """The entries of one package folder.

    ``package`` is the dotted name of the folder, ``what`` the noun for an entry in messages ("device", "objective").
    """

    def __init__(self, package: str, what: str) -> None:
        self.package = package
        self.what = what
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Decorated], Decorated]:
        """Decorate the class (or function) of an entry; ``name`` is the file's name."""

        def add(entry: Decorated) -> Decorated:
            if name in self._entries and self._entries[name].__module__ != entry.__module__:
                raise ConfigError(
                    f"two {self.what} entries claim the name {name!r}: {self._entries[name]} and {entry}."
                )
            self._entries[name] = cast(Entry, entry)
            return entry

        return add

    def names(self) -> list[str]:
        """All names, sorted; nothing is imported to know them."""
        folder = importlib.import_module(self.package)
        files = {info.name for info in pkgutil.iter_modules(folder.__path__) if not info.name.startswith("_")}
        return sorted(files | set(self._entries))

    def get(self, name: str) -> Entry:
        """Return the entry, importing its file on first use.

        Raises ConfigError for an unknown name (with the nearest known one) and for ``module:Class`` that is not there.
        """
        if ":" in name:
            return self._outside(name)
        if name not in self._entries:
            if name not in self.names():
                raise ConfigError(did_you_mean(name, self.names(), self.what))
            importlib.import_module(f"{self.package}.{name}")
        if name not in self._entries:
            raise ConfigError(f"the file {self.package}.{name} registers no {self.what} named {name!r}.")
        return self._entries[name]

    def _outside(self, name: str) -> Entry:
        module_name, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module_name), attribute)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{self.what} {name!r}: no module {error.name!r}; is its folder on PYTHONPATH?"
            ) from error
        except AttributeError as error:
            raise ConfigError(f"{self.what} {name!r}: the module {module_name!r} has no {attribute!r}.") from error
