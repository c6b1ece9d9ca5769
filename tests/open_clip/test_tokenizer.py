"""Ids and texts of the package's tokenizers beside open_clip's; and, without it, what they give and refuse."""

import copy
import gzip
import json
import pickle
import random
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import ConfigError, WeightsError
from diptych.open_clip import _reductions
from diptych.open_clip import tokenizer as ours
from tests.photos import FLICKR, needs_photos

STRANGE = [
    "", " ", "a", "a photo of a cat", "<start_of_text> a <end_of_text>", "<START_OF_TEXT>x", "<|startoftext|> a <|endoftext|>",
    "<end_of_text", "a</w>b", "it's I'LL don't", "&amp;lt;b&gt;", "\x00\x07", "\u200b", "tab\tnew\nline", "1234 5 ½ ²", "x" * 500,
    "ſ ﬁ İ ß ŉ", "😀👩‍👩‍👧‍👦", "a\u0301", "...!?", "[MASK]", "schÃ¶n",
]  # fmt: skip
PIECES = [
    *" ".join(STRANGE).split(),
    "naïve",
    "Ünïcode",
    "東京",
    "100%",
    "$5.00",
    "#tag",
    "â€™",
    "“quoted”",
    "dogs",
    "Ω",
    "ﷺ",
    "\u00a0",
]
CHANCE = random.Random(5)
TEXTS = [*STRANGE, *(" ".join(CHANCE.choices(PIECES, k=CHANCE.randrange(14))) for _ in range(300))]
OPTIONS = [
    {},
    {"clean": "whitespace"},
    {"clean": "canonicalize"},
    {"additional_special_tokens": ["<mask>", "photo"]},
    {"context_length": 5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_ids_and_texts_are_open_clips(peer, options):
    theirs, own = peer.SimpleTokenizer(**options), ours.SimpleTokenizer(**options)
    assert torch.equal(own(TEXTS), theirs(TEXTS))
    for text in TEXTS:
        ids = own.encode(text)
        assert ids == theirs.encode(text), text
        assert own.full_ids(text) == ids
        assert own.decode(ids) == theirs.decode(ids)
    for length in (1, 2, 3, 7, 200):
        assert torch.equal(own(TEXTS, length), theirs(TEXTS, length))


def test_attributes_are_open_clips(peer):
    for options in OPTIONS:
        theirs, own = peer.SimpleTokenizer(**options), ours.SimpleTokenizer(**options)
        for name in ("vocab_size", "sot_token_id", "eot_token_id", "all_special_ids", "context_length", "reduction_fn"):
            assert getattr(own, name) == getattr(theirs, name)
        for name in ("encoder", "decoder", "bpe_ranks", "byte_encoder", "byte_decoder"):
            assert list(getattr(own, name).items()) == list(getattr(theirs, name).items()), name


@needs_photos
def test_captions_have_open_clips_ids(peer):
    lines = (FLICKR / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    captions = [
        value for row in rows for values in row.values() for value in (values if isinstance(values, list) else [values])
    ]
    captions = [caption for caption in captions if isinstance(caption, str)]
    assert len(captions) > 5000
    assert torch.equal(ours.tokenize(captions), peer.tokenize(captions))


@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.lists(st.sampled_from(STRANGE)).map(" ".join))
def test_any_text_has_open_clips_ids(peer, text):
    own = ours.tokenize(text)
    assert torch.equal(own, peer.tokenize(text))
    ids = [number for number in own[0].tolist() if number]
    assert ours.decode(torch.tensor(ids)) == peer.decode(torch.tensor(ids))


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_the_fast_form_is_the_full_one(text):
    tokenizer = ours._tokenizer
    assert tokenizer.encode(text) == tokenizer.full_ids(text)


@pytest.mark.parametrize("mask", ["simple", "random", "shuffle"])
def test_masks_leave_out_the_tokens_that_open_clips_do(peer, mask):
    theirs, own = (module.SimpleTokenizer(reduction_mask=mask) for module in (peer, ours))
    ids = []
    for tokenizer in (theirs, own):
        torch.manual_seed(3)
        random.seed(4)
        ids.append(tokenizer(TEXTS, 9))
    assert torch.equal(*ids)


def test_the_syntax_mask_prefers_the_words_that_open_clips_does(peer, monkeypatch):
    tagger = types.ModuleType("nltk")  # its data cannot be had here: a stand-in that tags by the last letter
    tagger.tokenize = types.SimpleNamespace(word_tokenize=str.split)
    tagger.download = lambda name: True
    tagger.pos_tag = lambda vocab: [(word, {"s": "NNS", "d": "JJ", "g": "VBG"}.get(word[-1], "DT")) for word in vocab]
    monkeypatch.setitem(sys.modules, "nltk", tagger)
    monkeypatch.setattr(_reductions, "_nltk", _reductions._nltk.__wrapped__)
    texts = ["two dogs and three cats running over the red hills behind old houses", "a", "", *TEXTS[-30:]]
    for length in (5, 9):
        theirs, own = (module.SimpleTokenizer(reduction_mask="syntax") for module in (peer, ours))
        assert torch.equal(own(texts, length), theirs(texts, length))


def test_small_functions_are_open_clips(peer):
    for name in ("lower", "whitespace", "canonicalize"):
        mine, other = ours.get_clean_fn(name), peer.tokenizer.get_clean_fn(name)
        assert [mine(text) for text in TEXTS] == [other(text) for text in TEXTS]
    for text in ("a {} of_{a} thing!", "{}", "{ } _"):
        for keep in (None, "{}"):
            given = ours.canonicalize_text(text, keep_punctuation_exact_string=keep)
            assert given == peer.tokenizer.canonicalize_text(text, keep_punctuation_exact_string=keep)
    assert [ours.basic_clean(text) for text in TEXTS] == [peer.tokenizer.basic_clean(text) for text in TEXTS]
    assert [ours.whitespace_clean(text) for text in TEXTS] == [peer.tokenizer.whitespace_clean(text) for text in TEXTS]
    assert ours.get_pairs("hello") == peer.tokenizer.get_pairs("hello")
    assert list(ours.bytes_to_unicode().items()) == list(peer.tokenizer.bytes_to_unicode().items())
    assert ours.DEFAULT_CONTEXT_LENGTH == peer.tokenizer.DEFAULT_CONTEXT_LENGTH


def test_open_clips_own_file_of_merges_is_read(peer):
    theirs = peer.tokenizer.default_bpe()
    assert ours.SimpleTokenizer(theirs).encoder == peer.SimpleTokenizer().encoder
    assert ours.SimpleTokenizer(theirs).encode("a diagram") == [320, 22697]


def test_ids_are_clips():
    ids = ours.tokenize(["a diagram", "Hello World!"])
    assert ids.dtype == torch.int64
    assert ids.shape == (2, 77)
    assert ids[0, :5].tolist() == [49406, 320, 22697, 49407, 0]
    assert ours.decode(ids[1, :5]) == "<start_of_text>hello world ! <end_of_text>"
    assert ours.tokenize([]).shape == (0, 77)
    assert ours._tokenizer.encode("x" * 10) == ours._tokenizer.full_ids("x" * 10)


def test_arrays_tuples_and_generators_of_texts_are_taken():
    expected = ours.tokenize(["a", "b c"])
    for texts in (("a", "b c"), np.array(["a", "b c"]), (text for text in ("a", "b c"))):
        assert torch.equal(ours.tokenize(texts), expected)


def test_a_tokenizer_travels_to_workers():
    own = ours.SimpleTokenizer(context_length=9)
    for copied in (pickle.loads(pickle.dumps(own)), copy.deepcopy(own)):
        assert torch.equal(copied(TEXTS), own(TEXTS))


def test_special_tokens_with_signs_are_taken_as_they_are_spelled():
    own = ours.SimpleTokenizer(additional_special_tokens=["<|mask|>"])
    assert own.encode("a <|mask|> b") == [320, 49408, 321]
    assert own.decode([49408]) == "<|mask|>"


def test_a_changed_clean_fn_and_encode_are_used():
    own = ours.SimpleTokenizer()
    own.clean_fn = lambda text: text[::-1]
    assert own.encode("god") == ours.SimpleTokenizer().encode("dog")

    class Reversed(ours.SimpleTokenizer):
        def encode(self, text):
            return super().encode(text)[::-1]

    assert Reversed()("a b")[0, :4].tolist() == [49406, 321, 320, 49407]


@pytest.mark.parametrize(
    "call",
    [
        lambda: ours.SimpleTokenizer(clean="upper"),
        lambda: ours.SimpleTokenizer(reduction_mask="half"),
        lambda: ours.SimpleTokenizer(context_length=None)("a"),
        lambda: ours.tokenize("a", context_length=-3),
        lambda: ours.tokenize(3 * [None]),
        lambda: ours.tokenize(None),
        lambda: ours.tokenize([b"a"]),
        lambda: ours.SimpleTokenizer().encode(["a"]),
        lambda: ours.SimpleTokenizer().decode([10**6]),
    ],
)
def test_mistakes_are_one_line(call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_file_of_merges_that_is_none_is_said(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        ours.SimpleTokenizer(str(tmp_path / "merges.txt.gz"))
    plain, wrong = tmp_path / "plain.txt.gz", tmp_path / "wrong.txt.gz"
    plain.write_text("a b")
    wrong.write_bytes(gzip.compress(b"version\na b c\n"))
    for path in (plain, wrong):
        with pytest.raises(ConfigError, match=path.name):
            ours.SimpleTokenizer(str(path))


def test_the_mask_that_needs_taggers_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ConfigError, match="pip install nltk"):
        ours.SimpleTokenizer(reduction_mask="syntax")("a photo")


def test_masks_keep_order_and_length():
    ids = ours.SimpleTokenizer(context_length=9).encode("one two three four five six seven eight nine ten")
    for mask in ("simple", "random", "shuffle"):
        row = ours.SimpleTokenizer(reduction_mask=mask, context_length=9)(
            "one two three four five six seven eight nine ten"
        )[0]
        chosen = [ids.index(number) for number in row.tolist()[1:-1]]
        assert (row[0], row[-1], len(set(chosen))) == (49406, 49407, 7)
        if mask != "shuffle":
            assert chosen == sorted(chosen)
        if mask == "simple":
            assert chosen == list(range(chosen[0], chosen[0] + 7))
