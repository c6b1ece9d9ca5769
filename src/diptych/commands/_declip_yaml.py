"""A configuration of DeCLIP's repository (YAML) as flags of ours: the file is read here, its keys are in ``_declip_keys``.

What is dropped is said in one line each, with the reason; what cannot be done is an error of one line, and so are keys that
nobody knows. Written from the description of the format, not from their code. It opens no other file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych import log
from diptych.commands._declip_keys import SECTIONS
from diptych.commands._yaml_keys import Keys
from diptych.errors import ConfigError


def flags_of(path: str) -> list[str]:
    """The flags of ``diptych train`` that the YAML file comes to. Raises ConfigError, of one line."""
    keys = Keys(path, _tree(Path(path)))
    for section in SECTIONS:
        section(keys)
    unknown = keys.unknown()
    if unknown:
        raise ConfigError(
            f"{path}: {', '.join(unknown)}: no key of DeCLIP's configurations that is known here; leave it out."
        )
    for line in keys.dropped:
        log.info(f"{path}: {line}")
    log.info(f"{path}: read as diptych train {' '.join(keys.flags)}")
    return keys.flags


def _tree(path: Path) -> Mapping[str, Any]:
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"--config {path}: expected DeCLIP's YAML, .yaml or .yml; a TOML file is given by --recipe.")
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"--config {path}: no such file.") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"--config {path}: cannot be read as YAML: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not valid YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(tree, Mapping) or "model" not in tree:
        raise ConfigError(
            f"--config {path}: expected DeCLIP's sections (model, data, optimizer, ...) and finds no model."
        )
    return tree
