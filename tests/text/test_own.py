"""A vocabulary of a model's own: tokenizer.json by its library, vocab.json with merges.txt by CLIP's byte-pair encoding."""

import json
import pickle
import sys

import pytest

from diptych.errors import DiptychError, WeightsError
from diptych.text import get_tokenizer
from diptych.text._merges import END, START
from diptych.text.bpe import vocabulary


@pytest.fixture
def merges(tmp_path):
    """OpenAI's own vocabulary with its last thousand merges left out: its words are built otherwise."""
    known = vocabulary()
    pairs = sorted(known.ranks, key=known.ranks.__getitem__)[:-1000]
    tokens = [*list(known.ids)[:512], *(first + second for first, second in pairs), START, END]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    lines = "".join(f"{first} {second}\n" for first, second in pairs)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    return tmp_path / "vocab.json"


def test_words_are_merged_by_the_merges_beside_the_vocabulary(merges):
    own, openai = get_tokenizer("own", 77, merges), get_tokenizer("bpe")
    assert own.vocab_size == openai.vocab_size - 1000
    assert (own.start_id, own.end_id) == (openai.start_id - 1000, openai.end_id - 1000)
    for text in ("A photo of two dogs!", "l'été à la plage 🐱", "x" * 300, ""):
        ids = own.encode(text)
        assert own.decode(ids.ids) == openai.decode(openai.encode(text).ids)
        assert ids.ids[0] == own.start_id
        assert ids.ids[ids.length - 1] == own.end_id
    assert own.tokens("a photo") == openai.tokens("a photo")  # early merges, which both have


def test_transformers_gives_the_same_ids(merges):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(merges.parent)
    own = get_tokenizer("own", 77, merges)
    for text in ("a photo of two dogs", "12 boats, 3 oars."):
        assert own.encode(text).ids.tolist() == theirs(text)["input_ids"]


def test_a_worker_process_gets_the_same_ids(merges):
    own = get_tokenizer("own", 32, merges, start_id=7, end_id=9, pad_id=3)
    again = pickle.loads(pickle.dumps(own))
    assert again.encode("a dog").ids.tolist() == own.encode("a dog").ids.tolist()
    assert (again.start_id, again.end_id, again.pad_id, again.context_length) == (7, 9, 3, 32)


def test_without_the_library_the_merges_are_read(merges, monkeypatch):
    expected = get_tokenizer("own", 77, merges).encode("a photo").ids.tolist()
    merges.with_name("tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert get_tokenizer("own", 77, merges.with_name("tokenizer.json")).encode("a photo").ids.tolist() == expected
    merges.unlink()
    with pytest.raises(DiptychError, match="pip install tokenizers"):
        get_tokenizer("own", 77, merges.with_name("tokenizer.json"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("merges.txt", None, "without merges.txt"),
        ("merges.txt", "a b c\n", "not two symbols"),
        ("vocab.json", "[]", "not a vocabulary"),
        ("vocab.json", "{", "not a vocabulary"),
        ("vocab.json", '{"a": "b"}', "do not have numbers"),
    ],
)
def test_damaged_files_are_errors_of_one_line(name, content, message, merges):
    path = merges.with_name(name)
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(DiptychError, match=message) as caught:
        get_tokenizer("own", 77, merges)
    assert "\n" not in caught.value.line


def test_special_ids_outside_of_the_vocabulary_are_refused(merges):
    with pytest.raises(WeightsError, match="special id 99999"):
        get_tokenizer("own", 77, merges, end_id=99999)
