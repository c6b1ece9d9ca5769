"""The tokenizers over transformers beside open_clip's, over a small vocabulary that is written here."""

import sys

import pytest
import torch

from diptych.errors import ConfigError, DiptychError
from diptych.open_clip import tokenizer as ours

TEXTS = ["a photo of a Cat!", "", "dog " * 30, "  photo   &amp; cat "]


def write_tokenizer(path):
    """Word pieces as BERT's, with a start and an end token too, in the folder ``path``."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]", "[EOS]", "a", "photo", "of", "cat", "dog", "!", "&", "##s"]
    pieces = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({token: number for number, token in enumerate(vocab)}, unk_token="[UNK]")
    )
    pieces.normalizer = tokenizers.normalizers.Lowercase()
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "BOS", "EOS")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, **special).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("hf"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strip_sep_token": True, "clean": "canonicalize"},
        {"tokenizer_mode": "clips", "clean": "lower"},
        {"context_length": 6},
    ],
    ids=str,
)
def test_ids_are_open_clips(peer, folder, options):
    theirs, own = peer.tokenizer.HFTokenizer(folder, **options), ours.HFTokenizer(folder, **options)
    for length in (None, 6, 20):
        assert torch.equal(own(TEXTS, length), theirs(TEXTS, length))
    assert torch.equal(own(TEXTS[0]), theirs(TEXTS[0]))


def test_ids_have_their_positions(folder, tmp_path):
    own = ours.HFTokenizer(folder, context_length=8)
    assert own("a Photo of cats").tolist() == [[2, 6, 7, 8, 9, 13, 3, 0]]
    own.save_pretrained(str(tmp_path))
    assert torch.equal(ours.HFTokenizer(str(tmp_path), 8)(TEXTS), own(TEXTS))
    stripped = ours.HFTokenizer(folder, context_length=8, strip_sep_token=True)
    assert stripped("a Photo").tolist() == [[2, 6, 7, 0, 0, 0, 0, 0]]
    clips = ours.HFTokenizer(folder, context_length=8, tokenizer_mode="clips")
    assert clips("a Photo").tolist() == [[4, 6, 7, 5, 0, 0, 0, 2]]


def test_mistakes_are_one_line(folder, monkeypatch):
    with pytest.raises(ConfigError, match="tokenizer_mode"):
        ours.HFTokenizer(folder, tokenizer_mode="clip")
    with pytest.raises(ConfigError, match="context_length"):
        ours.HFTokenizer(folder, context_length=None)("a")
    with pytest.warns(UserWarning, match="no languages"):
        ours.HFTokenizer(folder, language="fr")
    monkeypatch.setitem(sys.modules, "transformers", None)
    for make in (ours.HFTokenizer, ours.SigLipTokenizer):
        with pytest.raises(ConfigError, match="pip install transformers"):
            make(folder)


def test_a_tokenizer_that_cannot_be_opened_is_one_line(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "empty").mkdir()
    for make, path in ((ours.HFTokenizer, tmp_path / "empty"), (ours.SigLipTokenizer, tmp_path / "spiece.model")):
        with pytest.raises(DiptychError) as caught:
            make(str(path))
        assert path.name in caught.value.line
        assert "\n" not in str(caught.value)
