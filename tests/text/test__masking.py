"""Masked tokens: BERT's shares, never the start, end or mask, and random ones of the real vocabulary only."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import ConfigError
from diptych.text import Tokenizer, get_tokenizer, mask_tokens
from diptych.text.bpe import Bpe
from diptych.types import IGNORED

MASK = 49408


class Small(Tokenizer):
    """Ten ids, of which 0, 4, 8 and 9 are padding, mask, start and end: the special ones stand between the others."""

    name, vocab_size, start_id, end_id, pad_id, mask_id = "small", 10, 8, 9, 0, 4


def masked(ids, length, tokenizer, seed=0):
    return mask_tokens(np.array(ids), length, tokenizer, np.random.default_rng(seed))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 49405), max_size=20), st.integers(0, 5), st.integers(0, 1 << 32), st.sampled_from([None, 0])
)
def test_targets_are_the_original_ids_and_begin_end_and_padding_stay(words, padding, seed, end_again):
    ids = np.array([49406, *words, 49407, *[0] * padding])
    if end_again is not None and padding:
        ids[-1] = 49407
    before, length = ids.copy(), len(words) + 2
    tokens, targets = masked(ids, length, Bpe(mask_id=MASK), seed)
    assert np.array_equal(ids, before)
    predicted = targets != IGNORED
    assert np.array_equal(targets[predicted], ids[predicted])
    assert np.array_equal(tokens[~predicted], ids[~predicted])
    assert not predicted[0] and not predicted[length - 1 :].any()
    assert tokens.dtype == targets.dtype == np.int64


def test_the_shares_are_berts():
    ids = np.array([49406, *np.random.default_rng(1).integers(1, 49000, 40_000), 49407])
    tokens, targets = masked(ids, len(ids), Bpe(mask_id=MASK))
    predicted = targets != IGNORED
    count = predicted.sum()
    assert abs(count / 40_000 - 0.15) < 5 * (0.15 * 0.85 / 40_000) ** 0.5
    changed, mask = tokens[predicted] != ids[predicted], tokens[predicted] == MASK
    for share, expected in ((mask.mean(), 0.8), ((changed & ~mask).mean(), 0.1), ((~changed).mean(), 0.1)):
        assert abs(share - expected) < 5 * (expected * (1 - expected) / count) ** 0.5


def test_random_tokens_are_every_ordinary_one_and_no_special_one():
    ids = np.array([8, *[1] * 60_000, 9])
    tokens, targets = masked(ids, len(ids), Small(77))
    replaced = tokens[(targets != IGNORED) & (tokens != 4) & (tokens != 1)]
    values, counts = np.unique(replaced, return_counts=True)
    assert values.tolist() == [2, 3, 5, 6, 7]
    assert counts.min() > 0.8 * counts.mean() and counts.max() < 1.2 * counts.mean()


def test_tokens_are_chosen_independently_so_short_texts_often_have_none():
    """DeCLIP's rule: a text of one token is predicted in 15 % of its turns, and not always."""
    targets = [masked([8, 5, 9], 3, Small(77), seed).targets for seed in range(4000)]
    assert {tuple(item.tolist()) for item in targets} == {(IGNORED, 5, IGNORED), (IGNORED,) * 3}
    share = np.mean([item[1] == 5 for item in targets])
    assert abs(share - 0.15) < 5 * (0.15 * 0.85 / 4000) ** 0.5


@pytest.mark.parametrize("seed", range(40))
def test_a_mask_in_the_text_is_no_target(seed):
    tokens, targets = masked([8, 4, 4, 4, 9], 5, Small(77), seed)
    assert tokens.tolist() == [8, 4, 4, 4, 9] and (targets == IGNORED).all()


def test_the_generator_decides():
    ids = [49406, *range(1, 60), 49407]
    first, again, other = (masked(ids, 61, Bpe(mask_id=MASK), seed) for seed in (3, 3, 4))
    assert np.array_equal(first.tokens, again.tokens) and np.array_equal(first.targets, again.targets)
    assert not np.array_equal(first.targets, other.targets)


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(ConfigError, match="'bpe' has no mask token"):
        masked([49406, 5, 49407], 3, get_tokenizer("bpe"))
