"""Text views: the caption itself, and one that changes a few of its words by chance."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.text import VIEWS

WORDS = [f"w{number}" for number in range(20)]


def augmented(text, seed):
    return VIEWS["augmented"](text, np.random.default_rng(seed))


@given(st.text(), st.integers(0, 1 << 32))
def test_the_caption_is_itself(text, seed):
    assert VIEWS["caption"](text, np.random.default_rng(seed)) == text


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30), st.integers(0, 1 << 32))
def test_a_few_words_change_and_none_is_invented(words, seed):
    changed = augmented(" ".join(words), seed).split()
    allowed = max(1, round(0.1 * len(words)))
    assert changed and set(changed) <= set(words)
    assert abs(len(changed) - len(words)) <= allowed
    before, after = Counter(words), Counter(changed)
    assert max((before - after).total(), (after - before).total()) <= allowed
    assert augmented(" ".join(words), seed).split() == changed


def test_words_are_deleted_swapped_and_inserted_in_equal_shares():
    kinds, unchanged = Counter(), 0
    for seed in range(3000):
        changed = augmented(" ".join(WORDS), seed).split()
        unchanged += changed == WORDS
        kinds[len(changed) - len(WORDS)] += 1
        if len(changed) == len(WORDS):
            assert sorted(changed) == sorted(WORDS)
    # Twenty words: two are deleted, two pairs swapped, two inserted.
    assert set(kinds) == {-2, 0, 2}
    assert min(kinds.values()) > 900
    assert unchanged < 30  # the second swap may undo the first


@pytest.mark.parametrize("seed", range(20))
def test_short_captions_stay_captions(seed):
    assert augmented("", seed) == ""
    assert augmented("  ", seed) == "  "
    assert set(augmented("dog", seed).split()) == {"dog"}
    assert augmented("a dog", seed).split()
