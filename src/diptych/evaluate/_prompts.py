"""Prompt templates and lists of classes: sets that ship with Diptych, or a user's file.

A template holds one ``{}`` for the class name. Shipped sets are data: ``prompts/*.toml``, and ``classes/*.txt`` with an id and
a name per line. Which name belongs to which folder is ``_class_names``'s affair; it encodes nothing.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from diptych.errors import ConfigError
from diptych.files import StrPath
from diptych.registry import did_you_mean
from diptych.text import texts_of

PLACEHOLDER = re.compile(r"\{(0|c|class|classname|class_name|label)\}")
FOLDER = Path(__file__).parent / "prompts"
ALIASES = {"prompt80": "openai80"}
"""Other people's names of sets: DeCLIP's prompt80 is OpenAI's 80 in OpenAI's order."""
FROM_FILE = "file:"
CLASSES = Path(__file__).parent / "classes"


def template_sets() -> list[str]:
    """Names of the sets that ship with Diptych."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_templates(templates: StrPath | Sequence[str]) -> tuple[str, ...]:
    """Return templates: of a shipped set by name, of a text file with one per line (``file:PATH`` too), or those given.

    ``{0}``, ``{c}`` (CLIP_benchmark), ``{class}`` and ``{classname}`` are taken for ``{}``; empty lines of a file are skipped.
    Raises ConfigError for an unknown set, a missing file, no template at all, or a template that does not hold ``{}`` once.
    """
    if isinstance(templates, str | os.PathLike):
        where, lines = _by_name(templates)
    else:
        where, lines = "templates", texts_of(templates)
    lines = [PLACEHOLDER.sub("{}", line) for line in lines]
    wrong = [line for line in lines if line.count("{}") != 1]
    if wrong:
        raise ConfigError(f"{where}: the template {wrong[0]!r} must hold {{}} once, where the class name goes.")
    if not lines:
        raise ConfigError(f"{where}: no template; write one per line, such as 'a photo of a {{}}.'.")
    return tuple(lines)


def _by_name(spec: StrPath) -> tuple[str, list[str]]:
    name = os.fspath(spec)
    if isinstance(spec, str) and name.startswith(FROM_FILE):
        return name, lines_of(Path(name.removeprefix(FROM_FILE)))
    name = ALIASES.get(name, name)
    path = Path(name)
    shipped = FOLDER / f"{name}.toml"
    if isinstance(spec, str) and name in template_sets():
        return name, list(tomllib.loads(shipped.read_text(encoding="utf-8"))["templates"])
    if path.suffix or path.is_file() or len(path.parts) > 1:
        return name, lines_of(path)
    raise ConfigError(
        did_you_mean(name, [*template_sets(), *ALIASES], "prompt set") + " Or give a text file with one per line."
    )


def fill(template: str, name: str) -> str:
    """Put a class name into a template; braces in the name are kept as they are."""
    return template.replace("{}", name)


def readable(folder: str) -> str:
    """Turn a folder's name into a class name: underscores become spaces."""
    return " ".join(folder.replace("_", " ").split())


def class_sets() -> list[str]:
    """Names of the class lists that ship with Diptych."""
    return sorted(path.stem for path in CLASSES.glob("*.txt"))


def class_set(name: str) -> dict[str, str]:
    """A shipped list of classes: id -> name, in the list's order."""
    lines = [line for line in lines_of(CLASSES / f"{name}.txt") if not line.startswith("#")]
    return dict(line.split("\t", 1) for line in lines)  # type: ignore[misc]


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without blanks around them. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"no such file: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
