"""The shipped table of synonyms is whole, clean and licensed; NLTK's corpus is a choice that is said, never a fallback."""

import gzip
import re
import sys
import types

import pytest

from diptych.errors import ConfigError
from diptych.text import VIEWS, TextViewOptions
from diptych.text import _synonyms as module
from diptych.text._synonyms import STOP_LIST, TABLE, Synonyms, cleaned, shipped_table


def test_the_table_has_the_words_of_captions_and_wordnets_answers():
    table = shipped_table()
    assert 9_000 < len(table) < 11_000
    assert "domestic dog" in table["dog"] and "domestic dog" in table["dogs"]  # the base form's
    assert table["people"] == ("citizenry", "hoi polloi", "mass", "masses", "multitude", "the great unwashed")
    assert table["playground"] == ("resort area", "vacation spot")


def test_every_row_is_sorted_clean_and_without_the_word_itself():
    rows = gzip.decompress(TABLE.read_bytes()).decode("ascii").splitlines()
    assert rows == sorted(rows, key=lambda row: row.split("\t")[0])
    for word, synonyms in shipped_table().items():
        assert re.fullmatch("[a-z]{2,}", word) and word not in STOP_LIST
        assert list(synonyms) == sorted(set(synonyms)) and word not in synonyms
        assert all(re.fullmatch("[a-z]+( [a-z]+)*", synonym) and len(synonym) > 1 for synonym in synonyms), word


def test_senses_that_wordnet_calls_insults_are_left_out():
    table = shipped_table()
    assert "blackamoor" not in table["black"] and "queer" not in table["gay"]
    insult = "nig" + "ger"
    assert not any(insult in synonyms for synonyms in table.values())


def test_the_license_stands_beside_it():
    text = TABLE.with_name("WORDNET_LICENSE.txt").read_text(encoding="ascii")
    assert "Copyright 2006 by Princeton University" in text and '"AS IS"' in text
    assert "Permission to use, copy, modify and distribute" in text


@pytest.mark.parametrize(
    ("lemma", "text"),
    [("living_thing", "living thing"), ("T-shirt", "t shirt"), ("tinker's_dam", "tinkers dam"), ("2", ""), ("K", ""),
     ("<|endoftext|>", "endoftext"), ("spick-and-span", "spick and span")],
)  # fmt: skip
def test_lemmas_are_written_as_captions_are(lemma, text):
    assert cleaned(lemma) == text


@pytest.fixture
def own_nltk(monkeypatch):
    """A package of NLTK's name with a corpus of one word; caches of the module are emptied around it."""

    def use(ensure_loaded=lambda: None):
        lemma = types.SimpleNamespace(name=lambda: "Canis_familiaris")
        own = types.SimpleNamespace(name=lambda: "dog")
        sense = types.SimpleNamespace(lemmas=lambda: [lemma, own])
        corpus = types.ModuleType("nltk.corpus")
        corpus.wordnet = types.SimpleNamespace(
            ensure_loaded=ensure_loaded,
            get_version=lambda: "3.0",
            synsets=lambda word: [sense] if word == "dog" else [],
        )
        monkeypatch.setitem(sys.modules, "nltk", types.ModuleType("nltk"))
        monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)

    caches = (module._nltk_corpus, module._by_nltk)
    for cache in caches:
        cache.cache_clear()
    yield use
    for cache in caches:
        cache.cache_clear()


def test_nltks_corpus_is_used_where_it_is_asked_for_and_that_is_said(own_nltk, capsys):
    own_nltk()
    synonyms = Synonyms("nltk")
    synonyms.check()
    assert "NLTK's WordNet 3.0" in capsys.readouterr().err
    assert synonyms.of("dog") == ("canis familiaris",) and synonyms.of("cat") == () and synonyms.of("a") == ()
    assert "domestic dog" in Synonyms().of("dog")


def test_an_absent_nltk_or_corpus_is_an_error_when_the_view_is_built(own_nltk, monkeypatch):
    def absent():
        raise LookupError("wordnet")

    own_nltk(absent)
    with pytest.raises(ConfigError, match=r"no WordNet here; python -m nltk.downloader wordnet"):
        VIEWS["augmented"](TextViewOptions(synonyms="nltk"))
    module._nltk_corpus.cache_clear()
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(ConfigError, match=r"--synonyms nltk needs the package nltk.*shipped table"):
        VIEWS["augmented"](TextViewOptions(synonyms="nltk"))
    VIEWS["caption"](TextViewOptions(synonyms="nltk"))
