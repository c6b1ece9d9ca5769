"""Names as files spell them become words: the same when asked twice, never empty, never one of two."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diptych.errors import ConfigError
from diptych.evaluate import build_classifier, class_names, clean_names
from diptych.evaluate._clean_names import hint
from diptych.evaluate._prompts import class_set

LISTS = {
    "EuroSAT": (["AnnualCrop", "Forest", "HerbaceousVegetation", "SeaLake"],
                ["annual crop", "forest", "herbaceous vegetation", "sea lake"]),
    "CUB": (["001.Black_footed_Albatross", "014.Indigo_Bunting"], ["black footed albatross", "indigo bunting"]),
    "Stanford Dogs": (
        ["n02085620-Chihuahua", "n02089078-black-and-tan_coonhound", "n02106382-Bouvier_des_Flandres"],
        ["chihuahua", "black-and-tan coonhound", "bouvier des flandres"],
    ),
    "numbered": (["1_cat", "02 dog", "3-bird"], ["cat", "dog", "bird"]),
    "some numbers": (["737-200", "767 family", "A300B4"], ["737-200", "767 family", "a300b4"]),
    "acronyms": (["HTMLPage", "DVDPlayer", "TV"], ["html page", "dvd player", "tv"]),
    "plain": (["cat", "golden retriever", "t-shirt"], ["cat", "golden retriever", "t-shirt"]),
    "nothing left": (["n02085620-", "___", "12", "n02085620"], ["n02085620-", "___", "12", "n02085620"]),
    "none": ([], []),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_lists_of_published_sets(name):
    given, expected = LISTS[name]
    assert list(clean_names(given)) == expected


def test_different_classes_never_become_one():
    with pytest.raises(ConfigError, match=r"'SeaLake' and 'sea_lake' would both be 'sea lake'"):
        clean_names(["SeaLake", "sea_lake"])
    assert clean_names(["SeaLake", "SeaLake"]) == ("sea lake", "sea lake")  # one name before, one name after


ODD = st.text(alphabet="aAbBÉéßİǅ01. _-n", max_size=14) | st.text(max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.lists(ODD, max_size=5, unique=True))
def test_cleaning_is_idempotent_and_empties_and_merges_nothing(names):
    try:
        cleaned = clean_names(names)
    except ConfigError:
        assume(False)
    assert clean_names(cleaned) == cleaned
    assert len(cleaned) == len(names) == len(set(cleaned))
    assert all(after for before, after in zip(names, cleaned, strict=True) if before)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.from_regex(r"[A-Z][a-z]{1,6}", fullmatch=True), min_size=1, max_size=4))
def test_humps_are_words(parts):
    assert clean_names(["".join(parts)]) == (" ".join(parts).lower(),)
    assert clean_names(["_".join(parts)]) == (" ".join(parts).lower(),)


@pytest.mark.parametrize("name", ["EuroSAT", "CUB", "Stanford Dogs"])
def test_names_that_are_no_words_get_a_hint_and_clean_ones_none(name, capsys):
    given, expected = LISTS[name]
    class_names(given, None, "set")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("set: class names such as ")
    assert "--clean-names" in said
    assert expected[0] in said
    assert list(class_names(given, None, "set", clean=True)) == expected
    assert list(class_names(None, given, "set", clean=True)) == expected
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "names",
    [["Cat", "dog"], ["golden retriever", "t-shirt"], ["0", "1"], ["2012 Audi A4", "BMW X3"],
     ["McLaren", *"abcdefgh"], ["1 cat", "2 cat"]],
)  # fmt: skip
def test_ordinary_names_get_no_hint(names):
    assert hint(names) == ""


def test_folders_with_underscores_are_words_already(capsys):
    assert class_names(["golden_retriever", "tabby"], None, "set") == ("golden retriever", "tabby")
    assert capsys.readouterr().err == ""


def test_shipped_names_stay_as_they_are(capsys):
    folders = list(class_set("imagenet"))[:40]
    expected = tuple(class_set("imagenet").values())[:40]
    assert class_names(folders, None, clean=True) == class_names(folders, "imagenet", clean=True) == expected
    assert "--clean-names" not in capsys.readouterr().err


def test_equal_names_are_said_once_for_each_call_and_by_a_classifier_of_its_own(capsys):
    from diptych.devices import get_device
    from diptych.evaluate import Encoder
    from diptych.models import create_model
    from diptych.text import get_tokenizer

    encoder = Encoder(create_model("tiny-test").eval(), get_tokenizer("bpe", 32), None, get_device("cpu"), cache=False)
    names = ["kite", "Kite", "crane", "crane", "dog"]
    build_classifier(encoder, names, ["{}"], lambda count: None)
    said = capsys.readouterr().err
    assert "classes 0 and 1 have the same name, 'Kite', as have 1 more" in said
    build_classifier(encoder, iter(names), ("{}",), lambda count: None)
    assert capsys.readouterr().err == ""
    class_names(None, names, "set")
    assert "set: classes 0 and 1 have the same name" in capsys.readouterr().err


def test_the_command_cleans_names_where_it_is_asked(tmp_path, capsys):
    import json

    from PIL import Image

    from diptych import save
    from diptych.commands import main
    from diptych.models import create_model

    save(tmp_path / "w.safetensors", create_model("tiny-test"))
    for number, name in enumerate(["AnnualCrop", "SeaLake"]):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), ["green", "blue"][number]).save(tmp_path / "set" / name / "0.png")
    command = ["evaluate", "--pretrained", str(tmp_path / "w.safetensors"), "--imagenet-val", str(tmp_path / "set"),
               "--device", "cpu",               "--workers", "0", "--templates", "simple"]  # fmt: skip
    assert main([*command, "--output", str(tmp_path / "as they are")]) == 0
    assert capsys.readouterr().err.count("--clean-names makes it 'annual crop'") == 1
    assert main([*command, "--clean-names", "--output", str(tmp_path / "clean")]) == 0
    assert "--clean-names" not in capsys.readouterr().err
    results = json.loads((tmp_path / "clean" / "results.json").read_text())
    assert "annual crop" in json.dumps(results)
    (tmp_path / "set" / "sea_lake").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "set" / "sea_lake" / "0.png")
    assert main([*command, "--clean-names"]) == 2
    assert "'SeaLake' and 'sea_lake' would both be 'sea lake'" in capsys.readouterr().err
