"""Objects of foreign classes in a pickle, as data: a checkpoint's options, paths, enumerations, whole modules.

``find_stand_in`` decides by the name alone. A class of a third-party package, or a harmless one of Python's own, becomes an
``Inert`` that holds what the pickle gives it and can do nothing; every other name of Python's own library, such as ``os.system``,
is refused with suspicion. Nothing is imported, whichever it is.
"""

from __future__ import annotations

import sys
from pathlib import Path

from diptych.tensorfiles._pickle_handlers import refuse
from diptych.tensorfiles._safe_unpickler import Opaque

# Of Python's own library: modules of which every name, and single names, that checkpoints hold as plain values.
HARMLESS_MODULES = frozenset({"collections", "collections.abc", "datetime", "enum", "fractions", "decimal", "pathlib",
                              "pathlib._local", "typing", "uuid", "zoneinfo", "ipaddress"})  # fmt: skip
HARMLESS_NAMES = frozenset({
    "argparse.Namespace", "types.SimpleNamespace", "types.MappingProxyType", "functools.partial", "copyreg._reconstructor",
    "copy_reg._reconstructor", "_codecs.encode", "logging.Logger", "re._compile", "random.Random", "dataclasses.field",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in (
        "set", "frozenset", "list", "tuple", "dict", "object", "slice", "range", "complex", "bytearray", "int", "float", "str",
        "bool", "bytes", "property", "NoneType", "Ellipsis", "type",
    )),
})  # fmt: skip
UNREMARKABLE = (
    "builtins.",
    "__builtin__.",
    "collections.",
    "copyreg.",
    "copy_reg.",
    "_codecs.",
    "torch.",
    "numpy.",
    "typing.",
)


class Inert(Opaque):
    """Stands for an object of the class ``kind``, and for the class itself; ``items`` has its attributes and entries."""

    __slots__ = ("items", "kind")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.items: dict[object, object] = {}

    def __setitem__(self, key: object, value: object) -> None:
        self.items[key] = value


def find_stand_in(path: Path, module: str, name: str, passed_over: set[str]) -> Inert:
    """The stand-in for a class; ``passed_over`` learns those worth a remark. Raises WeightsError for a suspicious name."""
    full = f"{module}.{name}"
    root = module.partition(".")[0]
    known = root in sys.stdlib_module_names or root in ("__builtin__", "copy_reg", "nt", "posix")
    if known and module not in HARMLESS_MODULES and full not in HARMLESS_NAMES:
        raise refuse(path, module, name)
    if not full.startswith(UNREMARKABLE):
        passed_over.add(full)
    return Inert(full)


def make(what: Inert, arguments: tuple[object, ...]) -> Inert:
    """An object of a stand-in's class, or what calling it would give; a dictionary among its arguments is its entries."""
    kind = arguments[0].kind if what.kind.endswith("._reconstructor") and _first_is_inert(arguments) else what.kind  # type: ignore[attr-defined]
    instance = Inert(kind)
    for argument in arguments:
        if isinstance(argument, dict):
            instance.items.update(argument)
    return instance


def _first_is_inert(arguments: tuple[object, ...]) -> bool:
    return bool(arguments) and isinstance(arguments[0], Inert)


def give_state(instance: Inert, state: object) -> None:
    """The state of an object: its attributes, or (attributes, slots)."""
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, dict):
            instance.items.update(part)
