"""CLIPA's tokenizer against transformers' own BERT, over a vocabulary that the real library trained here."""

import html

import ftfy
import pytest

from diptych.errors import WeightsError
from diptych.text import get_tokenizer

from .test_siglip import CORPUS, difficult_strings

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with ``vocab.txt`` and ``tokenizer.json``, and transformers' tokenizer over them."""
    from transformers import BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    trained = tokenizers.BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(CORPUS, vocab_size=400, min_frequency=1, show_progress=False)
    trained.save_model(str(folder))
    theirs = BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    theirs.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder, theirs


@pytest.mark.parametrize("file", ["vocab.txt", "tokenizer.json"])
def test_ids_equal_berts_without_its_separator_on_2000_difficult_strings(bert, file):
    folder, theirs = bert
    ours = get_tokenizer("clipa", 32, folder / file)
    texts = list(difficult_strings(2000))
    # As open_clip calls it: cleaned, truncated to 32 with both marks, then the separator becomes padding.
    clean = [" ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()) for text in texts]
    rows = theirs(clean, padding="max_length", max_length=32, truncation=True)["input_ids"]
    expected = [[0 if number == theirs.sep_token_id else number for number in row] for row in rows]
    assert theirs.pad_token_id == 0
    for text, row, row_of_theirs in zip(texts, ours(texts).tolist(), expected, strict=True):
        assert row == row_of_theirs, repr(text)
    special = {theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id}
    assert ours.special_ids() == special and ours.mask_id == theirs.mask_token_id


def test_a_long_text_counts_what_it_lost_and_words_come_back(bert):
    ours = get_tokenizer("clipa", 8, bert[0] / "vocab.txt")
    long = ours.encode("two dogs " * 20)
    assert long.num_truncated == len(ours.tokens("two dogs " * 20)) - 6
    assert long.ids[0] == ours.start_id and long.ids[-1] == 0
    for text in ("", "two dogs", "two dogs " * 20):
        encoded = ours.encode(text)
        assert ours.pad([encoded.ids])[1].tolist() == [encoded.length]
    assert ours.decode(ours.encode("Two Dogs").ids) == "two dogs"


def test_a_vocabulary_without_berts_marks_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\na\nb\n")
    with pytest.raises(WeightsError, match=r"vocab\.txt"):
        get_tokenizer("clipa", 32, tmp_path / "vocab.txt")
