"""Text views: the caption itself, and EDA's changes of it, against the procedure written out and against exact shares."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.text import VIEWS, TextViewOptions, get_tokenizer
from diptych.text._synonyms import STOP_LIST, Synonyms
from diptych.text._views import Eda

OPTIONS = TextViewOptions()
# No word of these is in the table, so that only swaps and deletions change a caption of them.
WORDS = [f"w{number}" for number in range(20)]
SENTENCE = "A little girl in a pink dress is climbing up the stairs to her playhouse ."


def augmented(text, seed):
    return VIEWS["augmented"](OPTIONS)(text, np.random.default_rng(seed))


def only(operation, text, seed):
    """One of the three operations alone: the generator after the draw that chose it."""
    rng = np.random.default_rng(seed)
    return operation(text.split(), rng)


@given(st.text(), st.integers(0, 1 << 32), st.sampled_from(["caption", "another"]))
def test_the_caption_is_itself(text, seed, name):
    assert VIEWS[name](OPTIONS)(text, np.random.default_rng(seed)) == text


def test_each_view_says_which_caption_it_is_made_of():
    assert {name: VIEWS[name](OPTIONS).caption for name in VIEWS} == {
        "caption": "own", "augmented": "first", "another": "another",
    }  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30), st.integers(0, 1 << 32))
def test_words_without_synonyms_are_swapped_or_deleted_and_none_is_invented(words, seed):
    changed = augmented(" ".join(words), seed).split()
    assert changed and not Counter(changed) - Counter(words)
    if len(changed) == len(words):
        assert sum(a != b for a, b in zip(changed, words, strict=True)) in (0, 2)
    assert augmented(" ".join(words), seed).split() == changed


def test_the_three_operations_have_equal_shares():
    """A sentence whose words all have synonyms, none twice: what happened is seen from the result."""
    words = ["dog", "grass", "woman", "red", "boat", "water"]
    kinds = Counter()
    for seed in range(6000):
        changed = augmented(" ".join(words), seed)
        if sorted(changed.split()) == sorted(words):
            kinds["swapped or nothing deleted"] += 1
        elif set(changed.split()) < set(words):
            kinds["deleted"] += 1
        else:
            kinds["replaced"] += 1
    nothing = 0.9**6  # of deletions delete nothing
    expected = {"replaced": 1 / 3, "deleted": (1 - nothing) / 3, "swapped or nothing deleted": (1 + nothing) / 3}
    for kind, share in expected.items():
        assert abs(kinds[kind] / 6000 - share) < 4 * (share * (1 - share) / 6000) ** 0.5, kind


def test_a_replaced_word_is_replaced_wherever_it_occurs_and_keeps_its_punctuation():
    class One(Synonyms):
        def of(self, word):
            return ("hound dog",) if word == "dog" else ()

    eda = Eda(One())
    replaced = only(eda._replaced, 'Dog, "dog" and dogs: a dog.', 0)
    assert replaced == ["hound dog,", '"hound dog"', "and", "dogs:", "a", "hound dog."]
    assert only(eda._replaced, "nothing here", 0) == ["nothing", "here"]


def test_a_synonym_is_drawn_uniformly_of_those_of_a_word_drawn_uniformly():
    eda, words = Eda(Synonyms()), ["woman", "boat"]
    counts = Counter(" ".join(only(eda._replaced, " ".join(words), seed)) for seed in range(8000))
    for number, word in enumerate(words):
        synonyms = Synonyms().of(word)
        for synonym in synonyms:
            text = " ".join(synonym if own == number else other for own, other in enumerate(words))
            share = 1 / 2 / len(synonyms)
            assert abs(counts[text] / 8000 - share) < 5 * (share / 8000) ** 0.5


def test_stop_words_are_never_replaced():
    eda = Eda(Synonyms())
    for seed in range(60):
        assert only(eda._replaced, "is it on a or in the", seed) == ["is", "it", "on", "a", "or", "in", "the"]
        before, after = SENTENCE.split(), only(eda._replaced, SENTENCE, seed)
        for first, second in zip(before, after, strict=True):
            assert first == second or first.lower() not in STOP_LIST


@pytest.mark.parametrize("count", [2, 3, 10])
def test_swaps_exchange_every_pair_equally_and_rarely_nothing(count):
    from diptych.text._views import _swapped

    words, total = WORDS[:count], 6000
    results = Counter(tuple(only(_swapped, " ".join(words), seed)) for seed in range(total))
    unchanged = results.pop(tuple(words), 0)
    idle = count**-3
    assert abs(unchanged / total - idle) < 5 * (idle * (1 - idle) / total) ** 0.5
    assert len(results) == count * (count - 1) // 2
    share = (1 - idle) / len(results)
    assert all(abs(number / total - share) < 5 * (share / total) ** 0.5 for number in results.values())


def test_deletions_delete_a_tenth_and_leave_a_random_word_at_least():
    from diptych.text._views import _deleted

    lengths = [len(only(_deleted, " ".join(WORDS), seed)) for seed in range(4000)]
    assert abs(np.mean(lengths) / 20 - 0.9) < 5 * (0.09 / 80_000) ** 0.5

    class Low:
        """A generator that deletes everything."""

        def random(self, count):
            return np.zeros(count)

        def integers(self, count):
            return count - 1

    assert _deleted(["a", "b", "c"], Low()) == ["c"]
    assert _deleted(["only"], Low()) == ["only"]


@pytest.mark.parametrize("seed", range(20))
def test_short_captions_stay_captions(seed):
    assert augmented("", seed) == ""
    assert augmented("  ", seed) == "  "
    assert augmented("?!", seed) == "?!"
    assert augmented("xyzzy", seed) == "xyzzy"
    assert augmented("dog", seed) in {"dog", *Synonyms().of("dog")}
    assert augmented("a dog", seed).split()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([*SENTENCE.split(), "<|", "endoftext", "|>", "<|endof", "text|>"]), min_size=1),
    st.integers(0, 1 << 32),
)
def test_no_special_token_is_produced(words, seed):
    tokenizer = get_tokenizer("bpe")
    special = tokenizer.special_ids() - {0}
    assert not special & set(tokenizer.tokens(augmented(" ".join(words), seed)))
