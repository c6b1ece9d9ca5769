"""Names of classes: joined by id, number or name, by position only as the last resort, and what does not fit is refused."""

import json

import pytest

from diptych.errors import ConfigError
from diptych.evaluate._class_names import class_names
from diptych.evaluate._labeled import class_folder
from diptych.evaluate._prompts import class_set, load_templates


def test_folders_that_are_numbers_are_lines_of_the_list(capsys):
    listed = list(class_set("imagenet").values())
    folders = sorted(map(str, range(1000)))  # "0", "1", "10", "100", ...
    assert class_names(folders, "imagenet", "v2") == tuple(listed[int(folder)] for folder in folders)
    assert "v2: class folders are numbers; folder 0 is line 0 of imagenet, from 0" in capsys.readouterr().err


def test_some_of_the_numbers_keep_their_own_lines():
    assert class_names(["10", "2", "7"], [f"name {number}" for number in range(12)]) == ("name 10", "name 2", "name 7")


def test_numbers_from_one_are_refused():
    with pytest.raises(ConfigError, match=r"numbers up to 3, and labels has 3 names, for 0 to 2"):
        class_names(["1", "2", "3"], ["a", "b", "c"])


@pytest.mark.parametrize("name", ["names.txt", "names.json", "index.json"])
def test_ids_join_in_any_order(tmp_path, name):
    path = tmp_path / name
    contents = {
        "names.txt": "\ufeffn02\tcat\r\nn01\tdog\r\n",
        "names.json": json.dumps({"n02": "cat", "n01": "dog"}),
        "index.json": json.dumps({"0": ["n02", "cat"], "1": ["n01", "dog"]}),
    }
    path.write_text(contents[name], encoding="utf-8")
    assert class_names(["n01", "n02"], str(path)) == ("dog", "cat")
    with pytest.raises(ConfigError, match=r"has no name for 1 of the 2 classes of source: 'n03'"):
        class_names(["n01", "n03"], str(path))


def test_names_of_the_folders_themselves_join_in_any_order():
    assert class_names(["golden_retriever", "tabby-cat"], ["Tabby cat", "Golden retriever"]) == (
        "Golden retriever", "Tabby cat",
    )  # fmt: skip


def test_names_that_contradict_the_folders_are_refused():
    with pytest.raises(ConfigError, match=r"in another order \('bird', 'cat'\)"):
        class_names(["bird", "cat", "n9"], ["cat", "bird", "a thing"])


def test_unrelated_names_go_by_position_and_it_is_said(capsys):
    assert class_names(["c1", "c2"], ["dog", "cat"], "set") == ("dog", "cat")
    assert "go in the sorted order of the classes: c1 is 'dog', ..., c2 is 'cat'" in capsys.readouterr().err


def test_another_number_of_names_says_which_are_missing():
    with pytest.raises(ConfigError, match=r"3 class names for the 2 class folders of set.*without a class: 'bee'"):
        class_names(["ant", "cat"], ["ant", "bee", "cat"], "set")


def test_classes_of_one_name_are_said_with_both_folders(capsys):
    class_names(["n04008634", "n03773504", "n01440764"], None, "set")
    assert "n03773504" in (text := capsys.readouterr().err) and "n04008634" in text and "'missile'" in text


def test_lists_and_prompts_beside_shards_and_folders_are_found(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of a {c}\nthe {class}.\n")
    for spec in (tmp_path, tmp_path / "test" / "{0..1}.tar"):
        found = class_folder(str(spec))
        assert (found.labels, found.templates) == (
            str(tmp_path / "classnames.txt"), str(tmp_path / "zeroshot_classification_templates.txt"),
        )  # fmt: skip
    assert load_templates(found.templates) == ("a photo of a {}", "the {}.")
