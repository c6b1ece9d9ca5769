"""What every tokenizer of the registry promises, over a small vocabulary that the real libraries trained here."""

import pickle

import numpy as np
import pytest
import torch

from diptych.text import TOKENIZERS, get_tokenizer

CORPUS = [
    "a photo of two dogs",
    "the red house behind old trees",
    "seven cats play with a blue ball",
    "snow in spring",
] * 20
TEXTS = ["a photo of two dogs", "seven cats", "snow", "", "the red house behind old trees " * 40]
each_tokenizer = pytest.mark.parametrize("name", TOKENIZERS.names())


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    """A vocabulary for each tokenizer that comes without one."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("vocabularies")
    bert = tokenizers.BertWordPieceTokenizer(lowercase=True)
    bert.train_from_iterator(CORPUS, vocab_size=200, min_frequency=1, show_progress=False)
    bert.save(str(folder / "bert.json"))
    pieces = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    pieces.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    pieces.decoder = decoders.Replace("▁", " ")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    pieces.train_from_iterator(CORPUS, trainer)
    pieces.save(str(folder / "pieces.json"))
    own = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    own.decoder = decoders.BPEDecoder("</w>")
    special = ["<unk>", "<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    own.train_from_iterator(CORPUS, trainer)
    own.save(str(folder / "own.json"))
    return {
        "own": folder / "own.json",
        "clipa": folder / "bert.json",
        "siglip": folder / "pieces.json",
        "siglip2": folder / "pieces.json",
    }


@pytest.fixture
def tokenizer(name, vocabularies):
    needs = getattr(TOKENIZERS.get(name), "needs_vocabulary", False)
    return get_tokenizer(name, 16, vocabularies[name] if needs else None)


@each_tokenizer
def test_encode_counts_its_ids_and_what_was_truncated(name, tokenizer):
    for text in TEXTS:
        encoded = tokenizer.encode(text)
        assert encoded.ids.dtype == np.int64
        assert encoded.ids.ndim == 1
        assert 1 <= encoded.length <= len(encoded.ids) <= 16
        assert 0 <= encoded.ids.min() <= encoded.ids.max() < tokenizer.vocab_size
        assert (encoded.num_truncated > 0) == (text == TEXTS[-1])
    assert tokenizer.encode(TEXTS[-1]).num_truncated < len(tokenizer.tokens(TEXTS[-1]))


@each_tokenizer
def test_a_call_gives_the_rectangle_of_the_encoded_texts(name, tokenizer):
    rectangle = tokenizer(TEXTS)
    assert rectangle.shape == (len(TEXTS), 16)
    assert rectangle.dtype == torch.int64
    for row, text in zip(rectangle.tolist(), TEXTS, strict=True):
        ids = tokenizer.encode(text).ids.tolist()
        assert row == ids + [tokenizer.pad_id] * (16 - len(ids))
    assert tokenizer(TEXTS[0]).tolist() == rectangle[:1].tolist()


@each_tokenizer
def test_pad_keeps_ids_and_lengths(name, tokenizer):
    encoded = [tokenizer.encode(text) for text in TEXTS]
    padded, lengths = tokenizer.pad([item.ids for item in encoded], [item.length for item in encoded])
    assert padded.shape == (len(TEXTS), max(len(item.ids) for item in encoded))
    assert lengths.tolist() == [item.length for item in encoded]
    for row, item in zip(padded.tolist(), encoded, strict=True):
        assert row[: len(item.ids)] == item.ids.tolist()
        assert set(row[len(item.ids) :]) <= {tokenizer.pad_id}


@each_tokenizer
def test_decode_undoes_encode(name, tokenizer):
    for text in TEXTS[:3]:
        assert " ".join(tokenizer.decode(tokenizer.encode(text).ids).split()) == text
        assert " ".join(tokenizer.decode(tokenizer(text)[0]).split()) == text


@each_tokenizer
def test_a_worker_process_gets_the_same_tokenizer(name, tokenizer):
    assert pickle.loads(pickle.dumps(tokenizer))(TEXTS).tolist() == tokenizer(TEXTS).tolist()


@each_tokenizer
def test_tokens_and_packed_agree(name, tokenizer):
    packed = tokenizer.packed_all(TEXTS)
    for text, raw in zip(TEXTS, packed, strict=True):
        assert np.frombuffer(raw, dtype=np.uint32).tolist() == tokenizer.tokens(text)
        assert raw == tokenizer.packed(text)
