"""Prompt templates and class names: sets that ship with Diptych, a user's file, and names of folders.

A template holds one ``{}`` for the class name. Shipped sets are data: ``prompts/*.toml``, and ``classes/*.txt`` with an id and
a name per line. It encodes nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

from diptych.errors import ConfigError
from diptych.registry import did_you_mean

FOLDER = Path(__file__).parent / "prompts"
CLASSES = Path(__file__).parent / "classes"


def template_sets() -> list[str]:
    """Names of the sets that ship with Diptych."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_templates(templates: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Return templates: of a shipped set by name, of a text file with one per line, or those given.

    ``{0}`` is taken for ``{}``; empty lines of a file are skipped. Raises ConfigError for an unknown set, a missing file,
    no template at all, or a template that does not hold ``{}`` once.
    """
    if isinstance(templates, str | Path):
        where, lines = _by_name(templates)
    else:
        where, lines = "templates", list(templates)
    lines = [line.replace("{0}", "{}") for line in lines]
    wrong = [line for line in lines if line.count("{}") != 1]
    if wrong:
        raise ConfigError(f"{where}: the template {wrong[0]!r} must hold {{}} once, where the class name goes.")
    if not lines:
        raise ConfigError(f"{where}: no template; write one per line, such as 'a photo of a {{}}.'.")
    return tuple(lines)


def _by_name(spec: str | Path) -> tuple[str, list[str]]:
    name, path = str(spec), Path(spec)
    shipped = FOLDER / f"{name}.toml"
    if isinstance(spec, str) and name in template_sets():
        return name, list(tomllib.loads(shipped.read_text(encoding="utf-8"))["templates"])
    if path.suffix or path.is_file() or len(path.parts) > 1:
        return name, _lines(path)
    raise ConfigError(did_you_mean(name, template_sets(), "prompt set") + " Or give a text file with one per line.")


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
    lines = [line for line in _lines(CLASSES / f"{name}.txt") if not line.startswith("#")]
    return dict(line.split("\t", 1) for line in lines)  # type: ignore[misc]


def class_names(
    folders: Sequence[str] | None, labels: str | Path | Sequence[str] | None = None, source: str = "source"
) -> tuple[str, ...]:
    """Return one readable name per class, in the order of the class folders.

    ``labels`` is the name of a shipped list (imagenet), a text file with one name per line, or the names themselves; None
    takes the folders' names, or OpenAI's names where the folders are WordNet ids of ImageNet. Raises ConfigError when
    their number is not the number of folders, or when there are neither folders nor names.
    """
    if labels is None:
        if not folders:
            raise ConfigError(
                f"{source}: has no class names of its own; give labels, a text file with one per line, or 'imagenet'."
            )
        known = class_set("imagenet") if folders[0] in class_set("imagenet") else {}
        return tuple(known.get(folder, readable(folder)) for folder in folders)
    if isinstance(labels, str) and labels in class_sets():
        listed = class_set(labels)
        if folders and set(folders) <= set(listed):
            return tuple(listed[folder] for folder in folders)
        names: list[str] = list(listed.values())
    else:
        names = _lines(Path(labels)) if isinstance(labels, str | Path) else list(labels)
    if folders and len(names) != len(folders):
        raise ConfigError(
            f"{labels if isinstance(labels, str | Path) else 'labels'}: {len(names)} class names for the {len(folders)} "
            f"class folders of {source}; give one per folder, in the folders' sorted order."
        )
    return tuple(names)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"no such file: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
