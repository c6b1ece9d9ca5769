"""Templates and class names: shipped sets, a user's file, and what is wrong with either."""

from __future__ import annotations

import pytest

from diptych.errors import ConfigError
from diptych.evaluate._class_names import class_names
from diptych.evaluate._prompts import fill, load_templates, readable, template_sets


def test_every_shipped_set_loads():
    assert template_sets() == ["cc", "openai7", "openai80", "prompt6", "prompt8", "simple"]
    for name in template_sets():
        assert load_templates(name)


def test_the_openai_set_has_its_eighty_templates_in_order():
    templates = load_templates("openai80")
    assert len(templates) == 80 == len(set(templates))
    assert (templates[0], templates[39], templates[79]) == (
        "a bad photo of a {}.", "a photo of a {}.", "a tattoo of the {}.",
    )  # fmt: skip
    assert "itap of a {}." in templates and "a {} in a video game." in templates
    assert all(template.endswith(".") for template in templates)


def test_a_file_has_one_template_per_line(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("\ufeffa drawing of {}\n\n  the {0} \n", encoding="utf-8")
    assert load_templates(path) == load_templates(str(path)) == ("a drawing of {}", "the {}")


def test_declips_names_of_sets_and_files(tmp_path):
    assert load_templates("prompt80") == load_templates("openai80")
    path = tmp_path / "mine.txt"
    path.write_text("a drawing of {0}\n", encoding="utf-8")
    assert load_templates(f"file:{path}") == ("a drawing of {}",)
    with pytest.raises(ConfigError, match="no such file"):
        load_templates("file:none.txt")


@pytest.mark.parametrize("lines", ["a photo\n", "{} and {}\n", "\n"])
def test_a_template_holds_the_name_once(tmp_path, lines):
    path = tmp_path / "mine.txt"
    path.write_text(lines)
    with pytest.raises(ConfigError, match=r"mine\.txt"):
        load_templates(path)


def test_unknown_sets_and_missing_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'openai80'"):
        load_templates("openai-80")
    with pytest.raises(ConfigError, match="no such file"):
        load_templates(tmp_path / "absent.txt")


def test_braces_in_a_class_name_stay():
    assert fill("a {}.", "{0} set") == "a {0} set."


def test_folder_names_become_words():
    assert readable("golden_retriever") == "golden retriever"
    assert class_names(["golden_retriever", "cat"]) == ("golden retriever", "cat")
    assert class_names(["n01", "n02"], ["dog", "cat"]) == ("dog", "cat")
