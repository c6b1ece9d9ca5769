"""What to say of a file that does not exist: the names that are near it. It opens nothing."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from diptych.data._remote import is_remote
from diptych.errors import SourceError

SHOWN = 5


def missing(spec: str, what: str = "no such file") -> SourceError:
    """The error for a path that does not exist, or a pattern that matches nothing: with what its folder holds instead."""
    shown = spec[:200]
    if is_remote(spec) or spec.startswith("pipe:"):
        return SourceError(f"{shown}: {what}.")
    try:
        hint = _near(Path(spec))
    except (OSError, ValueError):  # no file can have such a name
        hint = ""
    return SourceError(f"{shown}: {what}.{hint}")


def _near(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        exists = next(parent for parent in [*folder.parents, Path(folder.anchor or ".")] if parent.is_dir())
        return f" The folder {exists} exists, {_below(folder, exists)} in it does not."
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    near = difflib.get_close_matches(path.name, names[:10_000], n=1, cutoff=0.75)
    if near:
        return f" Did you mean {folder / near[0]}?"
    ending = re.sub(r"[*?\[\]{}]", "", path.suffix).lower()
    same = [name for name in names if ending and name.lower().endswith(ending)]
    if same:
        more = f" and {len(same) - SHOWN} more" if len(same) > SHOWN else ""
        return f" Of {ending} the folder holds {', '.join(same[:SHOWN])}{more}."
    return f" The folder {folder} holds {', '.join(names)}." if 0 < len(names) <= SHOWN else ""


def _below(folder: Path, exists: Path) -> str:
    return folder.relative_to(exists).parts[0] if folder.is_relative_to(exists) else str(folder)
