"""What people hand to a tokenizer: one text, any iterable of texts, none at all; everything else is one line."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import ConfigError
from diptych.text import get_tokenizer

BPE = get_tokenizer("bpe", 16)
TEXTS = ["a dog runs", "two cats", "çà et là"]


@pytest.mark.parametrize(
    "given",
    [tuple(TEXTS), iter(TEXTS), (text for text in TEXTS), np.array(TEXTS), [np.str_(text) for text in TEXTS],
     dict.fromkeys(TEXTS).keys()],
    ids=["tuple", "iterator", "generator", "array", "numpy texts", "keys"],
)  # fmt: skip
def test_any_iterable_of_texts_gives_the_ids_of_the_list(given):
    assert torch.equal(BPE(given), BPE(TEXTS))


def test_one_text_is_a_batch_of_one():
    for text in ("a dog runs", np.str_("a dog runs")):
        assert torch.equal(BPE(text), BPE(["a dog runs"]))


def test_no_text_gives_no_row():
    for nothing in ([], (), iter([]), np.array([], dtype=str)):
        assert BPE(nothing).shape == (0, 16)
        assert BPE(nothing).dtype == torch.int64
    assert BPE([], context_length=5).shape == (0, 5)


@pytest.mark.parametrize(
    "given",
    [b"a dog", None, 3, 2.5, {"a": "dog"}, np.array("a dog"),
     ["a", None], ["a", b"dog"], ["a", 3], [["a dog"]], ["a", float("nan")]],
    ids=repr,
)  # fmt: skip
def test_what_is_no_text_is_one_line(given):
    with pytest.raises(ConfigError) as error:
        BPE(given)
    assert "expected a" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [0, 1, 2, -4])
def test_a_context_that_holds_no_word_is_one_line(length):
    with pytest.raises(ConfigError, match=f"a context of {length} tokens"):
        BPE(TEXTS, context_length=length)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=20), max_size=5))
def test_each_text_has_the_ids_that_it_has_alone(texts):
    rows = BPE(iter(texts))
    assert rows.shape == (len(texts), 16)
    for row, text in zip(rows, texts, strict=True):
        assert torch.equal(row, BPE(text)[0])


def test_ids_of_one_text_decode_from_any_kind_of_array():
    row = BPE(["a dog runs"])[0]
    for same in (row, row.numpy(), row.tolist(), row.int(), iter(row.tolist())):
        assert BPE.decode(same) == "a dog runs"
    assert BPE.decode([]) == ""


@pytest.mark.parametrize(
    "given",
    [BPE(TEXTS), [0.5], [-1], [49408], torch.zeros(2), [[320, 1929]], [[1], [2, 3]], None],
    ids=["batch", "float", "negative", "unknown", "floats", "rows", "ragged", "none"],
)  # fmt: skip
def test_ids_that_are_not_of_one_text_are_one_line(given):
    with pytest.raises(ConfigError, match=r"^ids [^\n]* were given; "):
        BPE.decode(given)
