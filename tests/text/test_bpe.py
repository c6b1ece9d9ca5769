"""The ids are CLIP's ids: fast path and full path, ours and transformers', easy and difficult strings."""

import gzip
import json
import pickle
import random
import string
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import ConfigError
from diptych.text import get_tokenizer
from diptych.text._merges import END, START, WORD_END, _merged_long, merged
from diptych.text.bpe import CACHE_LIMIT, MERGES, clean, vocabulary
from tests.photos import FLICKR, needs_photos


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer("bpe")


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    """transformers' CLIP tokenizer over the same merges."""
    from transformers import CLIPTokenizerFast

    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps(dict(vocabulary().ids)), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + gzip.decompress(MERGES.read_bytes()).decode(), encoding="utf-8"
    )
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **special}))
    return CLIPTokenizerFast.from_pretrained(folder)


def test_the_vocabulary_is_clips():
    known = vocabulary()
    assert (len(known.ids), len(known.ranks)) == (49408, 48894)
    assert (known.ids[START], known.ids[END], known.ids["a" + WORD_END]) == (49406, 49407, 320)


def test_known_captions_have_their_published_ids(tokenizer):
    assert tokenizer.encode("a diagram").ids.tolist() == [49406, 320, 22697, 49407]
    assert tokenizer.encode("Hello World!").ids.tolist() == [49406, 3306, 1002, 256, 49407]
    assert tokenizer.encode("").ids.tolist() == [49406, 49407]


def test_every_token_that_ends_a_word_is_what_its_letters_merge_to():
    # The tokenizer takes such a word as one token without merging: this is the proof that it may.
    known = vocabulary()
    for token in known.ids:
        if token.endswith(WORD_END) and len(token) > len(WORD_END):
            letters = token[: -len(WORD_END)]
            assert merged([*letters[:-1], letters[-1] + WORD_END], known.ranks) == [token]


@settings(max_examples=300)
@given(st.text() | st.text(string.printable) | st.text(string.ascii_letters + " '.,-!0123456789"))
def test_the_fast_path_equals_the_full_path(text):
    tokenizer = get_tokenizer("bpe")
    assert tokenizer.packed(text) == tokenizer.packed_without_cache(text)
    assert tokenizer.packed(text) == tokenizer.packed_without_cache(text)  # now from the cache


@settings(deadline=None)
@given(st.text("abeghinorst", min_size=2, max_size=60) | st.text("ab", min_size=2, max_size=60), st.integers(1, 40))
def test_long_words_are_merged_as_short_ones(letters, times):
    symbols = list(letters * times)
    symbols = [*symbols[:-1], symbols[-1] + WORD_END]
    slow = merged.__globals__["LONG"]
    try:
        merged.__globals__["LONG"] = 1 << 30
        expected = merged(symbols, vocabulary().ranks)
    finally:
        merged.__globals__["LONG"] = slow
    assert _merged_long(symbols, vocabulary().ranks) == expected


def test_a_word_of_two_hundred_thousand_letters_takes_no_minutes(tokenizer):
    start = time.perf_counter()
    assert tokenizer.encode("hello" * 40_000).num_truncated > 10_000
    assert time.perf_counter() - start < 20


def difficult_strings(count):
    rng = random.Random(0)
    words = [
        "don't",
        "I'll",
        "naïve",
        "café",
        "Ünïcode",
        "東京",
        "emoji 😀",
        "👩‍👩‍👧‍👦",
        "100%",
        "$5.00",
        "#tag",
        "@you",
        "x_y",
        "e-mail",
    ]
    words += [
        "supercalifragilistic",
        "...",
        "?!",
        "“quoted”",
        "1,000,000",
        "ﬁne",
        "Ω",
        "ﷺ",
        "ĳ",
        "a\u0301",
        "²",
        "Ⅷ",
        "İstanbul",
        "ß",
    ]
    letters = string.ascii_letters + string.digits + string.punctuation.replace("&", "").replace("<", "") + "   "
    for _ in range(count):
        if rng.random() < 0.5:
            yield " ".join(rng.choice(words) for _ in range(rng.randrange(1, 12)))
        else:
            yield "".join(rng.choice(letters) for _ in range(rng.randrange(0, 60)))


def test_difficult_strings_equal_transformers(tokenizer, peer):
    # transformers does no ftfy and no HTML unescaping: it gets what our cleaning gives, which is what it would lower-case.
    for text in difficult_strings(2000):
        cleaned = clean(text)
        theirs = peer(cleaned, add_special_tokens=False)["input_ids"]
        assert tokenizer.tokens(text) == theirs, text


@needs_photos
def test_captions_equal_transformers(tokenizer, peer):
    lines = (FLICKR / "captions.jsonl").read_text().splitlines()
    captions = [text for line in lines for text in json.loads(line)["captions"]][:5000]
    theirs = peer(captions)["input_ids"]
    assert [tokenizer.encode(text).ids.tolist() for text in captions] == theirs


def test_cleaning_mends_entities_mojibake_and_white_space(tokenizer):
    assert tokenizer.tokens("Tom &amp;amp; Jerry") == tokenizer.tokens("tom & jerry")
    assert tokenizer.tokens("cafÃ©") == tokenizer.tokens("café")
    assert tokenizer.tokens(" a \t\n b ") == tokenizer.tokens("a b")


def test_a_long_text_keeps_its_end_token_and_counts_what_it_lost(tokenizer):
    long = tokenizer.encode("dog " * 200)
    assert (len(long.ids), long.ids[-1], long.num_truncated) == (77, tokenizer.end_id, 125)
    assert tokenizer.encode("dog " * 75).num_truncated == 0
    short = get_tokenizer("bpe", 5).encode("one two three four")
    assert (len(short.ids), short.ids[-1], short.num_truncated) == (5, 49407, 1)


def test_a_batch_is_padded_as_open_clip_pads(tokenizer):
    ids = tokenizer(["a dog", "", "cat " * 100])
    assert ids.shape == (3, 77)
    assert ids.dtype == torch.int64
    assert ids[0, :5].tolist() == [49406, 320, 1929, 49407, 0]
    assert ids[1, :3].tolist() == [49406, 49407, 0]
    assert ids[2, -1] == 49407
    assert torch.equal(tokenizer("a dog"), ids[:1])
    assert tokenizer(["a dog"], context_length=8).shape == (1, 8)


def test_batch_and_single_encoding_agree(tokenizer):
    for text, row in zip(list(difficult_strings(100)), tokenizer(list(difficult_strings(100))), strict=True):
        ids = tokenizer.encode(text).ids
        assert row[: len(ids)].tolist() == ids.tolist()


@given(
    st.lists(
        st.one_of(st.text(max_size=12), st.sampled_from(["", " ", "a dog\n", "one\ntwo", "&amp;", "A  Dog.", "é"]))
    )
)
@settings(deadline=None)
def test_texts_together_and_one_by_one_give_the_same_ids(texts):
    tokenizer = get_tokenizer("bpe")
    plain = ["a black dog", *texts, "it's 3 o'clock"] * 20  # more than are checked together
    assert tokenizer.packed_all(plain) == [tokenizer.packed_without_cache(text) for text in plain]


def test_rows_are_padded_to_the_longest_and_end_at_their_first_end_token(tokenizer):
    rows = [tokenizer.encode(text).ids for text in ("a dog", "a very long caption", f"early {END} late")]
    ids, lengths = tokenizer.pad(rows)
    assert ids.shape[1] == max(map(len, rows))
    assert lengths.tolist() == [4, 6, 3]


def test_decoding_gives_the_words_back(tokenizer):
    for text in ("a photo of a dog", "東京 😀", "naïve café"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_pickled_tokenizer_works_and_leaves_its_cache_behind(tokenizer):
    tokenizer.encode("some words")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert np.array_equal(again.encode("some words").ids, tokenizer.encode("some words").ids)
    assert len(pickle.dumps(tokenizer)) < 500


def test_the_cache_is_bounded(monkeypatch):
    import diptych.text.bpe as module

    monkeypatch.setattr(module, "CACHE_LIMIT", 10)
    tokenizer = get_tokenizer("bpe")
    for number in range(100):
        tokenizer.encode(f"w{number}")
    assert len(tokenizer._vocabulary) <= 10 < CACHE_LIMIT


def test_a_context_without_room_for_a_word_is_refused():
    with pytest.raises(ConfigError, match="at least 3"):
        get_tokenizer("bpe", 2)


def test_an_unknown_tokenizer_is_named():
    with pytest.raises(ConfigError, match="unknown tokenizer 'bp'"):
        get_tokenizer("bp")
