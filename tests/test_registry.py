"""A folder that lists itself, and names that are nearly right."""

import pytest

from diptych.errors import ConfigError
from diptych.objectives import OBJECTIVES, Objective
from diptych.registry import Registry, did_you_mean


def test_names_are_the_files_of_the_folder():
    assert "clip" in OBJECTIVES.names()
    assert not [name for name in OBJECTIVES.names() if name.startswith("_")]


def test_an_entry_is_imported_when_asked_for():
    assert issubclass(OBJECTIVES.get("clip"), Objective)


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ConfigError, match=r"unknown objective 'clpi'. Did you mean 'clip'\?"):
        OBJECTIVES.get("clpi")


def test_outside_code_is_taken_by_module_and_class():
    assert OBJECTIVES.get("collections:OrderedDict").__name__ == "OrderedDict"
    with pytest.raises(ConfigError, match="PYTHONPATH"):
        OBJECTIVES.get("no_such_module:Thing")
    with pytest.raises(ConfigError, match="has no 'Nothing'"):
        OBJECTIVES.get("collections:Nothing")


def test_a_file_that_registers_nothing_says_so():
    # The standard library's folder ``json`` has a file ``decoder``, which of course registers nothing here.
    with pytest.raises(ConfigError, match=r"json\.decoder registers no thing"):
        Registry("json", "thing").get("decoder")


def test_a_long_list_is_cut_to_the_near_ones():
    line = did_you_mean("name7", [f"name{i}" for i in range(100)], "thing")
    assert "'name7" in line
    assert line.count(",") <= 13
