"""Writes down every public name of open_clip with its signature: run with the peers' Python, on the release to follow.

    .venv-peers/bin/python scripts/open_clip_names.py > tests/open_clip/names.json

A public name is a function, a class or a value that a module of open_clip defines without an underscore before it, and
whatever the package itself imports. The table is committed, so that tests and docs need no open_clip.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks._peers import open_clip


def defined(tree: ast.Module) -> list[str]:
    """The public names that a module's text defines at its top level."""
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return sorted({name for name in names if not name.startswith("_")})


def imported(tree: ast.Module) -> list[str]:
    """The public names that the package's own ``__init__`` imports."""
    names = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    return sorted(name for name in names if not name.startswith("_") or name == "__version__")


def described(value: Any) -> dict[str, Any]:
    """Its kind, and of a callable each parameter as [name, kind, default]."""
    if not callable(value):
        return {"kind": "value"}
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return {"kind": "class" if inspect.isclass(value) else "function"}
    listed = [[item.name, str(item.kind), _default(item.default)] for item in parameters]
    return {"kind": "class" if inspect.isclass(value) else "function", "parameters": listed}


def _default(value: Any) -> str | None:
    """The default in words that depend neither on where its class is defined nor on this machine's folders."""
    if value is inspect.Parameter.empty:
        return None
    if isinstance(value, str) and "/" in value:
        return "a file of the package"
    return value.__name__ if callable(value) else repr(round(float(value), 6) if isinstance(value, float) else value)


def main() -> None:
    """Print the table."""
    package = open_clip()
    folder = Path(package.__file__ or "").parent
    table = {"version": package.__version__, "names": {}}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = path.stem == "__init__"
        module = package if own else importlib.import_module(f"open_clip.{path.stem}")
        names = imported(tree) if own else defined(tree)
        table["names"]["" if own else path.stem] = {name: described(getattr(module, name)) for name in names}
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
