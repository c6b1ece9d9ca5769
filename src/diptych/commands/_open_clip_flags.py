"""open_clip's training flags: what each is here, and how a command line of theirs becomes one of ours.

The table is data (``_open_clip_flags.toml``); what a value decides is in ``_open_clip_rules``. Spelling is theirs too: a flag may
be shortened as far as it stays the only one that begins so. Not a parser: flags of ours pass through as they are.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from diptych import log
from diptych.commands._open_clip_rules import RULES
from diptych.errors import ConfigError
from diptych.registry import did_you_mean

TABLE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class OpenClipFlag:
    """One flag of theirs. The fields are the keys of the table, which explains them."""

    name: str
    status: Literal["same", "mapped", "no effect", "refused"]
    values: Literal["one", "switch", "many"] = "one"
    default: str | None = None
    harmless: tuple[str, ...] = ()
    becomes: str = ""
    replaces: tuple[str, ...] = ()
    rule: str = ""
    note: str = ""
    only: str = ""
    aliases: tuple[str, ...] = ()

    def is_harmless(self, values: Sequence[str]) -> bool:
        """Whether these values say what holds anyway."""
        if self.status == "same" or self.values == "switch":
            return False
        return not values or (len(values) == 1 and values[0] in (self.default, *self.harmless))


@dataclass
class Given:
    """A flag as it is given: its name in full, open_clip's entry if it is one of theirs, and its values."""

    name: str
    entry: OpenClipFlag | None
    values: list[str] = field(default_factory=list)
    joined: bool = False
    """Whether the first value stands in the same argument, after =."""

    @property
    def argv(self) -> list[str]:
        """The arguments as they are given, with the name in full."""
        if self.joined:
            return [f"{self.name}={self.values[0]}", *self.values[1:]]
        return [self.name, *self.values] if self.name else self.values


@cache
def open_clip_flags() -> dict[str, OpenClipFlag]:
    """Every flag of open_clip's training program by name, in the order of the table."""
    entries = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {name: _entry(name, values) for name, values in entries.items()}


def _entry(name: str, values: dict[str, Any]) -> OpenClipFlag:
    lists: dict[str, Any] = {key: tuple(item) for key, item in values.items() if isinstance(item, list)}
    return OpenClipFlag(name, **{**values, **lists})


def translated(argv: Sequence[str], own: Collection[str]) -> list[str]:
    """The command line in our own flags. ``own`` are our flags, as ``--batch-size``.

    What has no effect here is said in one line. Raises ConfigError, of one line, for a flag that is refused, for one that may be
    several, and for a value that is none.
    """
    given = _given(argv, own)
    names = {item.name: item.values for item in given}
    dropped = {name for item in given if item.entry for name in item.entry.replaces}
    result: list[str] = []
    for item in given:
        if item.name in dropped and (item.entry is None or item.name not in item.entry.replaces):
            log.info(f"{item.name}: dropped, since {_replacing(given, item.name)} is given too.")
        elif item.entry is None or item.entry.status == "same":
            result += item.argv
        else:
            result += _in_our_flags(item, item.entry, names)
    return result


def _in_our_flags(item: Given, entry: OpenClipFlag, names: Mapping[str, Sequence[str]]) -> list[str]:
    _check_values(item, entry)
    if entry.is_harmless(item.values):
        return []
    if entry.status == "refused":
        raise ConfigError(f"{' '.join([item.name, *item.values])}: {entry.note}.")
    if entry.status == "no effect":
        log.info(f"{item.name}: no effect here; {entry.note}.")
        return []
    if entry.rule:
        return RULES[entry.rule](entry.name, item.values, names)
    return entry.becomes.format(*item.values).split()


def _check_values(item: Given, entry: OpenClipFlag) -> None:
    expected = {"one": "one value", "switch": "no value"}.get(entry.values)
    if expected is not None and len(item.values) != (entry.values == "one"):
        raise ConfigError(f"{' '.join([item.name, *item.values])}: expected {expected}.")


def _replacing(given: Sequence[Given], name: str) -> str:
    return next(item.name for item in given if item.entry and name in item.entry.replaces)


def _given(argv: Sequence[str], own: Collection[str]) -> list[Given]:
    """The command line by flags; arguments before the first flag, and after --help, belong to a nameless one."""
    result = [Given("", None)]
    for argument in argv:
        if not argument.startswith("--") or argument == "--":
            result[-1].values.append(argument)
            continue
        name, equals, value = argument.partition("=")
        name, entry = _resolved("--" + name[2:].replace("_", "-"), own)
        result.append(Given(name, entry, [value] if equals else [], joined=bool(equals)))
    return result


def _resolved(name: str, own: Collection[str]) -> tuple[str, OpenClipFlag | None]:
    """The flag in full, and open_clip's entry. Raises ConfigError for a beginning of several, or nearly one of theirs."""
    theirs = open_clip_flags()
    spelled = {alias: entry.name for entry in theirs.values() for alias in (entry.name, *entry.aliases)}
    if name in spelled:
        return spelled[name], theirs[spelled[name]]
    if name in own:
        return name, None
    matching = sorted({full for spelling, full in spelled.items() if spelling.startswith(name)})
    if len(matching) == 1:
        log.info(f"{name}: read as {matching[0]}.")
        return matching[0], theirs[matching[0]]
    if matching:
        raise ConfigError(f"{name}: may be any of {', '.join(matching)}; write one in full.")
    nearest = difflib.get_close_matches(name, [*own, *spelled], n=1, cutoff=0.75)
    if nearest and nearest[0] not in own and not name.startswith("--no-"):
        raise ConfigError(f"{did_you_mean(name, {*own, *spelled}, 'flag')} (see diptych train --help)")
    return name, None
