"""SigLIP's two tokenizers against the real ones of transformers, over vocabularies that the real libraries trained here."""

import json
import pickle
import random

import pytest

from diptych.errors import ConfigError, WeightsError
from diptych.text import get_tokenizer
from tests.photos import FLICKR, needs_photos

pytest.importorskip("sentencepiece")
pytest.importorskip("tokenizers")
CORPUS = [
    f"{beginning} {middle} {end}"
    for beginning in (
        "a photo of",
        "two dogs play with",
        "the red house behind",
        "it's snowing on",
        "çà et là",
        "12 kilos of",
    )
    for middle in ("the", "an old", "seven", "my neighbour's", "très", "unbelievable", "東京 の")
    for end in ("cats.", "bicycles!", "trees, rivers & stones", "children", "emoji 😀", "façade", "strawberries")
]
TEXT = """don't I'll naïve café Ünïcode 東京 日本語 emoji😀 👩‍👩‍👧‍👦 100% $5.00 #tag @you x_y e-mail &amp; &lt;b&gt; â€™ Ã©
“quoted” 1,000,000 ﬁne Ω ﷺ ĳ a\u0301 ² Ⅷ İstanbul ß ... ?! dogs the photo of a red house tree rivers strawberries {} [x]"""
PIECES = [*TEXT.split(), "\t", "\n", "\u00a0", "\u200b"]


def difficult_strings(count):
    rng = random.Random(5)
    yield from ("", " ", "  two  spaces ", "word " * 200, "!!!", "\n", "A" * 300, "▁", "a ▁ b")
    for _ in range(count):
        yield " ".join(rng.choice(PIECES) for _ in range(rng.randrange(0, 14)))


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A vocabulary as SigLIP's: padding 0, end 1, unknown 2, no start."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("siglip")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(folder / "spiece"), vocab_size=260, model_type="unigram",
        character_coverage=1.0, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    return folder / "spiece.model"


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A tokenizer.json that transformers' own class for SigLIP 2 wrote, over merges that the real trainer learned."""
    from tokenizers import Tokenizer, decoders, normalizers, trainers
    from tokenizers.models import BPE
    from transformers import Siglip2Tokenizer

    trained = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    trained.decoder = decoders.Replace("▁", " ")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    theirs = Siglip2Tokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    folder = tmp_path_factory.mktemp("siglip2")
    theirs.save_pretrained(folder)
    return folder / "tokenizer.json", theirs


def test_siglips_ids_equal_transformers_on_2000_difficult_strings(spiece):
    from transformers import SiglipTokenizer

    theirs, ours = SiglipTokenizer(str(spiece), model_max_length=64), get_tokenizer("siglip", 64, spiece)
    for text in difficult_strings(2000):
        if "▁" in text:
            continue  # theirs turns the mark itself into a space; nobody writes it
        expected = theirs(text, padding="max_length", max_length=64, truncation=True)["input_ids"]
        assert ours(text)[0].tolist() == expected, repr(text)


def test_siglip2s_ids_equal_transformers_on_2000_difficult_strings(gemma):
    path, theirs = gemma
    ours = get_tokenizer("siglip2", 64, path)
    for text in difficult_strings(2000):
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        expected = [*plain[:63], 1]
        expected += [0] * (64 - len(expected))
        assert ours(text)[0].tolist() == expected, repr(text)
    vocab = json.loads(path.read_text())["model"]["vocab"]
    assert ours.mask_id == vocab["<mask>"] == 4
    assert ours.special_ids() >= {vocab[token] for token in ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")}


@needs_photos
def test_captions_equal_transformers(spiece):
    from transformers import SiglipTokenizer

    theirs, ours = SiglipTokenizer(str(spiece)), get_tokenizer("siglip", 64, spiece)
    lines = (FLICKR / "captions.jsonl").read_text().splitlines()
    captions = [text for line in lines for text in json.loads(line)["captions"]][:1000]
    expected = theirs(captions, padding="max_length", max_length=64, truncation=True)["input_ids"]
    assert ours(captions).tolist() == expected


def test_a_text_keeps_its_end_and_counts_what_it_lost(spiece):
    tokenizer = get_tokenizer("siglip", 8, spiece)
    short, long = tokenizer.encode("a photo"), tokenizer.encode("a photo of " * 30)
    assert len(short.ids) == len(long.ids) == 8
    assert short.ids.tolist().count(1) == 8 - len(tokenizer.tokens("a photo"))  # padding is the end token again
    assert long.ids[-1] == 1
    assert long.num_truncated == len(tokenizer.tokens("a photo of " * 30)) - 7
    assert tokenizer.decode(short.ids) == "a photo"
    assert tokenizer.mask_id is None and tokenizer.special_ids() == {0, 1, 2}
    assert tokenizer.pad([short.ids, long.ids])[1].tolist() == [short.length, long.length]


def test_a_worker_gets_the_same_tokenizer(spiece, gemma):
    for name, path in (("siglip", spiece), ("siglip2", gemma[0])):
        tokenizer = get_tokenizer(name, 64, path)
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again("two dogs")[0].tolist() == tokenizer("two dogs")[0].tolist()


def test_a_lacking_or_damaged_vocabulary_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="needs its vocabulary"):
        get_tokenizer("siglip", 64)
    for name in ("tokenizer.json", "spiece.model"):
        (tmp_path / name).write_bytes(b"\x80nothing")
        with pytest.raises(WeightsError, match="not a vocabulary"):
            get_tokenizer("siglip", 64, tmp_path / name)
    with pytest.raises(ConfigError, match="texts are 64 tokens long"):
        get_tokenizer("siglip2", 64, _small(tmp_path))(["a"], 32)


def _small(folder):
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

    Tokenizer(BPE(vocab={"a": 0}, merges=[])).save(str(folder / "small.json"))
    return folder / "small.json"
