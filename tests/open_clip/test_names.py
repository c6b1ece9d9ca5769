"""Every public name of open_clip is here with its signature, or in the list of what is not, with the line that it raises.

``names.json`` is written by ``scripts/open_clip_names.py`` from the real package.
"""

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from diptych.errors import DiptychError
from diptych.open_clip._absent import INSTEAD

TABLE = json.loads((Path(__file__).parent / "names.json").read_text())
NAMES = [(module, name) for module, names in TABLE["names"].items() for name in names]
MOST_ABSENT = 0.05


def module_of(name: str) -> Any:
    return importlib.import_module(f"diptych.open_clip.{name}" if name else "diptych.open_clip")


def default_of(value: Any) -> str | None:
    """As the script writes it."""
    if value is inspect.Parameter.empty:
        return None
    if isinstance(value, str) and "/" in value:
        return "a file of the package"
    return value.__name__ if callable(value) else repr(round(float(value), 6) if isinstance(value, float) else value)


def test_the_table_is_of_a_whole_release():
    assert TABLE["version"] == "3.3.0"
    assert len(NAMES) >= 190


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{module}.{name}" for module, name in NAMES])
def test_a_public_name_has_its_signature_or_its_line(module, name):
    ours = getattr(module_of(module), name)
    theirs = TABLE["names"][module][name]
    if name in INSTEAD:
        with pytest.raises(DiptychError, match=name):
            ours()
        return
    assert callable(ours) == (theirs["kind"] != "value")
    if "parameters" not in theirs:
        return
    assert inspect.isclass(ours) == (theirs["kind"] == "class")
    parameters = [
        [item.name, str(item.kind), default_of(item.default)] for item in inspect.signature(ours).parameters.values()
    ]
    assert parameters == theirs["parameters"]


def test_few_names_are_absent():
    absent = [name for _, name in NAMES if name in INSTEAD]
    assert 0 < len(absent) <= MOST_ABSENT * len(NAMES), absent
    assert {*absent} == {*INSTEAD}, "a line for a name that open_clip does not have"


def test_a_line_says_what_there_is_instead():
    assert all((len(line) < 200 and "here" in line) or "not read" in line for line in INSTEAD.values())


@pytest.mark.parametrize("module", [name for name in TABLE["names"] if name])
def test_each_module_is_an_attribute_of_the_package(module):
    package = importlib.import_module("diptych.open_clip")
    # A function of the package has this module's name, in open_clip too.
    assert inspect.ismodule(getattr(package, module)) == (module != "push_to_hf_hub")
