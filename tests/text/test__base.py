"""The tokenizer contract: padding carries lengths, and counts them only where nobody has."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import ConfigError
from diptych.text import get_tokenizer
from diptych.text.bpe import Bpe

BPE = get_tokenizer("bpe", 16)


@settings(deadline=None)
@given(st.lists(st.text(max_size=80), min_size=1, max_size=6))
def test_padding_carries_what_encoding_counted(texts):
    encoded = [BPE.encode(text) for text in texts]
    tokens, lengths = BPE.pad([item.ids for item in encoded], [item.length for item in encoded])
    assert tokens.shape == (len(texts), max(len(item.ids) for item in encoded))
    for row, length, item in zip(tokens, lengths, encoded, strict=True):
        assert row[: len(item.ids)].tolist() == item.ids.tolist()
        assert set(row[len(item.ids) :].tolist()) <= {BPE.pad_id}
        assert int(length) == item.length and row[length - 1] == BPE.end_id
    counted = BPE.pad([item.ids for item in encoded])
    assert counted[1].tolist() == lengths.tolist() and counted[0].tolist() == tokens.tolist()


def test_an_id_above_the_end_token_does_not_end_a_text():
    row = np.array([49406, 320, 49408, 320, 49407])  # a mask token, the largest id
    assert BPE.pad([row])[1].tolist() == [5]
    assert BPE.pad([row], [5])[1].tolist() == [5]


def test_the_first_end_token_ends_a_text():
    row = np.array([49406, 320, 49407, 320, 49407])
    assert BPE.pad([row])[1].tolist() == [3]


@pytest.mark.parametrize("lengths", [[2], [2, 0], [2, 4], [1, 1, 1]], ids=str)
def test_lengths_that_do_not_fit_are_refused(lengths):
    with pytest.raises(ConfigError, match="expected one each"):
        BPE.pad([np.array([1, 2]), np.array([1, 2, 3])], lengths)


def test_no_texts_are_an_empty_rectangle():
    tokens, lengths = BPE.pad([])
    assert tokens.shape == (0, 0) and lengths.shape == (0,)


def test_a_worker_has_the_same_mask_token():
    assert pickle.loads(pickle.dumps(Bpe(16, mask_id=49408))).mask_id == 49408
    assert BPE.mask_id is None
    assert Bpe(mask_id=49408).special_ids() == {0, 49406, 49407, 49408}
