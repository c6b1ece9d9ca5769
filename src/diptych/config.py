"""Options: a recipe (TOML) plus flags become one frozen tree of dataclasses, and back.

Every option is declared once, as a typed field in the dataclass of its owner, with a line of documentation under it.
A recipe groups fields in tables named after the tree's branches; a flag is the leaf's name alone (``--batch-size``), so
leaf names are unique over a tree. Later wins: default, recipe, flag. An unknown key or flag is an error that names the
nearest known one. An option that was renamed keeps its old names (``Alias``). This file knows no option by name and holds
no defaults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from diptych.errors import ConfigError
from diptych.registry import did_you_mean

Tree = TypeVar("Tree")


class DataclassInstance(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


@dataclasses.dataclass(frozen=True)
class Range:
    """What a number must lie in, both ends included: ``Annotated[float, Range(0, 1)]``. Every number must be finite anyway."""

    least: float
    most: float = math.inf

    def __str__(self) -> str:
        return f"at least {self.least:g}" if self.most == math.inf else f"from {self.least:g} to {self.most:g}"


@dataclasses.dataclass(frozen=True)
class Alias:
    """An old name of an option, as flag and as key of a recipe: ``max_steps: Annotated[int, Alias("--num-steps")] = 0``."""

    flag: str

    @property
    def leaf(self) -> str:
        """The old name as a field is spelled: num_steps."""
        return self.flag.lstrip("-").replace("-", "_")


Share = typing.Annotated[float, Range(0, 1)]
NotNegative = typing.Annotated[float, Range(0)]
Count = typing.Annotated[int, Range(0)]
RECIPES = Path(__file__).parent / "recipes"


def leaves(tree: type, branch: str = "") -> Iterator[tuple[str, str]]:
    """Yield (branch, leaf name) of every option in a tree of dataclasses."""
    hints = typing.get_type_hints(tree)
    for item in dataclasses.fields(tree):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from leaves(hints[item.name], item.name)
        else:
            yield branch, item.name


def aliases(tree: type) -> dict[str, str]:
    """Old name -> leaf name of every renamed option in a tree of dataclasses."""
    hints = typing.get_type_hints(tree, include_extras=True)
    renamed: dict[str, str] = {}
    for item in dataclasses.fields(tree):
        if dataclasses.is_dataclass(hints[item.name]):
            renamed |= aliases(typing.cast(type, hints[item.name]))
        renamed |= {mark.leaf: item.name for mark in _marks(hints[item.name]) if isinstance(mark, Alias)}
    return renamed


def _marks(hint: Any) -> list[Any]:
    """What ``Annotated`` adds to a type; of an optional one too (``NotNegative | None``)."""
    inner = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else ()
    return [*getattr(hint, "__metadata__", ()), *(mark for item in inner for mark in _marks(item))]


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a missing or malformed one is a ConfigError of one line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"no such file: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a TOML text: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def find_recipe(name: str) -> Path:
    """Resolve ``--recipe``: a path to a TOML file, or the name of one that ships with Diptych (``declip/clip-rn50``)."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return path
    shipped = {file.relative_to(RECIPES).with_suffix("").as_posix(): file for file in RECIPES.rglob("*.toml")}
    if name not in shipped:
        raise ConfigError(did_you_mean(name, shipped, "recipe"))
    return shipped[name]


def from_dict(tree: type[Tree], values: Mapping[str, Any], where: str) -> Tree:
    """Build a dataclass tree from nested mappings, checking every name and type.

    ``where`` (a file's name) begins each message. Raises ConfigError.
    """
    hints = typing.get_type_hints(tree)
    known = {item.name for item in dataclasses.fields(tree)}  # type: ignore[arg-type]
    renamed = {old: new for old, new in aliases(tree).items() if new in known}
    built: dict[str, Any] = {}
    for given, value in values.items():
        key = renamed.get(given, given)
        if key in built:
            raise ConfigError(f"{where}: {given!r} is the old name of {key!r}; give one of them.")
        if key not in known:
            raise ConfigError(f"{where}: {_unknown_key(tree, key, known)}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}: [{key}] is a table of options, not {value!r}.")
            built[key] = from_dict(typing.cast(type, hints[key]), value, f"{where}, [{key}]")
        else:
            built[key] = _convert(value, hints[key], f"{where}: {key}")
    try:
        result = tree(**built)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error
    check(typing.cast(DataclassInstance, result), f"{where}: ")
    return result


def check(tree: DataclassInstance, before: str = "--") -> None:
    """Raise ConfigError for a number of the tree that is not finite, or outside of its ``Range``; ``before`` begins the line."""
    hints = typing.get_type_hints(type(tree), include_extras=True)
    for item in dataclasses.fields(tree):
        value = getattr(tree, item.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check(value, before)
            continue
        name = item.name.replace("_", "-") if before == "--" else item.name
        ranges = [mark for mark in _marks(hints[item.name]) if isinstance(mark, Range)]
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ConfigError(f"{before}{name} {number}: expected a finite number.")
            for limits in ranges:
                if isinstance(number, int | float) and not limits.least <= number <= limits.most:
                    raise ConfigError(f"{before}{name} {number}: expected a number of {limits}.")


def _unknown_key(tree: type, key: str, known: set[str]) -> str:
    leaf_name = aliases(tree).get(key, key)
    tables = [branch for branch, leaf in leaves(tree) if leaf == leaf_name and branch]
    if tables:
        return f"the option {key!r} belongs in the table [{tables[0]}]."
    return did_you_mean(key, known, "key")


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or origin is types.UnionType:
        options = [item for item in arguments if item is not type(None)]
        listed = [
            item for kind in options if typing.get_origin(kind) is typing.Literal for item in typing.get_args(kind)
        ]
        return value if isinstance(value, str) and value in listed else _convert(value, options[0], where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ConfigError(f"{where} = {value!r}: expected one of {', '.join(map(repr, arguments))}.")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} = {value!r}: expected a list.")
        inner = [item for item in arguments if item is not Ellipsis] or [str]
        kinds = inner * len(value) if len(inner) == 1 else inner
        if len(kinds) != len(value):
            raise ConfigError(f"{where} = {value!r}: expected {len(kinds)} values.")
        return origin(_convert(item, kind, where) for item, kind in zip(value, kinds, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ConfigError(f"{where} = {value!r}: expected {hint.__name__}, got {type(value).__name__}.")
    return value


def to_dict(tree: DataclassInstance) -> dict[str, Any]:
    """Return the tree as nested plain mappings; None values are left out, since TOML has no null."""
    result: dict[str, Any] = {}
    for item in dataclasses.fields(tree):
        value = getattr(tree, item.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            result[item.name] = to_dict(value)
        elif value is not None:
            result[item.name] = value
    return result


def to_toml(values: Mapping[str, Any]) -> str:
    """Write nested mappings of plain values as TOML text."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in values.items() if not isinstance(value, Mapping)]
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{key}]"] if lines else [f"[{key}]"]
            lines += to_toml(value).rstrip("\n").split("\n")  # not splitlines: a string may hold U+0085
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def parse(
    tree: type[Tree], argv: Sequence[str], *, program: str, description: str = "", default: Tree | None = None
) -> Tree:
    """Turn flags into a tree, over ``default`` (a recipe's). ``--help`` prints and raises SystemExit(0).

    Raises ConfigError, of one line, for an unknown flag and for a value of the wrong kind.
    """
    import tyro

    errors = io.StringIO()
    options: dict[str, Any] = {"prog": program, "description": description, "args": _current_flags(tree, argv)}
    if default is not None:
        options["default"] = default
    try:
        with contextlib.redirect_stderr(errors):
            built, unknown = tyro.cli(
                tree,
                return_unknown_args=True,
                config=(tyro.conf.OmitArgPrefixes,),
                **options,
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(f"{_one_line(errors.getvalue())} (see {program} --help)") from None
    if unknown:
        raise ConfigError(_unknown_flag(tree, unknown[0]) + f" (see {program} --help)")
    check(typing.cast(DataclassInstance, built))
    return built


def flags(tree: type) -> dict[str, str]:
    """Flag -> leaf name of every option of a tree, old names included; ``--no-...`` of switches is not listed."""
    names = {leaf: leaf for _, leaf in leaves(tree)} | aliases(tree)
    return {"--" + name.replace("_", "-"): leaf for name, leaf in names.items()}


def _current_flags(tree: type, argv: Sequence[str]) -> list[str]:
    """The arguments with old names of flags replaced by the current ones, ``--no-...`` of switches too."""
    renamed = {}
    for old, new in aliases(tree).items():
        for negation in ("", "no_"):
            renamed[f"{negation}{old}"] = f"--{negation}{new}".replace("_", "-")
    current = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        flag = renamed.get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
        current.append(f"{flag}{equals}{value}" if flag else argument)
    return current


def _unknown_flag(tree: type, argument: str) -> str:
    if not argument.startswith("-"):
        return f"{argument!r} stands alone: every value follows its flag."
    return did_you_mean(argument.split("=", maxsplit=1)[0].replace("_", "-"), flags(tree), "flag")


def _one_line(text: str) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    plain = re.sub(r"[\u2500-\u257f]+", " ", plain)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("For full helptext", "Parsing error", "Required options"))]
    flat = re.sub(r"\s+", " ", " ".join(lines))
    return re.sub(r" Argument helptext:.*", ".", flat)[:300]
