"""Which caption each text view gets: "augmented" the same as "caption", "another" never, whatever else is wanted; bad ones."""

import json
from collections import Counter

import numpy as np
import pytest

from diptych.data import CaptionPerRecord, Loader, LoaderOptions, build_prepare, open_source
from diptych.data._choice import CaptionChoice
from diptych.errors import ConfigError, RecordError
from diptych.image import ViewOptions
from diptych.text import TextViewOptions, get_tokenizer
from diptych.types import Record, Wants

from .world import write_images

MANY = Record("many", b"", tuple(f"caption number {number}" for number in range(6)))
WEIGHTED = Record(
    "weighted", b"", ("real one",), extra={"caption": "real one", "blip": ["model one", "model two"], "never": "no"}
)
WEIGHTS = (("caption", 1.0), ("blip", 3.0), ("never", 0.0))


def prepared(texts, captions="random", weights=(), **options):
    wants = Wants(images=(), texts=texts)
    return build_prepare(
        wants, get_tokenizer("bpe"), ViewOptions(8), captions, weights, texts=TextViewOptions(**options)
    )


@pytest.mark.parametrize("order", [("caption", "another"), ("another", "caption"), ("another", "augmented", "caption")])
def test_another_is_never_the_caption_and_every_other_one_in_equal_shares(order):
    prepare, pairs = prepared(order), Counter()
    for seed in range(3000):
        texts = dict(zip(order, prepare.texts(MANY, seed), strict=True))
        assert texts["another"] != texts["caption"]
        pairs[texts["caption"], texts["another"]] += 1
    assert len(pairs) == 30
    assert all(abs(count / 3000 - 1 / 30) < 5 * (1 / 30 / 3000) ** 0.5 for count in pairs.values())


def test_a_view_gets_its_text_whatever_else_is_wanted():
    alone = {name: prepared((name,)) for name in ("caption", "augmented", "another")}
    together = prepared(("another", "augmented", "caption", "caption"))
    for seed in range(200):
        another, augmented, caption, second = together.texts(MANY, seed)
        assert [another] == alone["another"].texts(MANY, seed)
        assert [augmented] == alone["augmented"].texts(MANY, seed)
        assert [caption] == alone["caption"].texts(MANY, seed)
        assert second in MANY.captions


def test_the_augmented_caption_is_the_caption_changed():
    """DeCLIP compares a caption with its own augmentation; each caption here has a number that EDA leaves in or deletes."""
    prepare = prepared(("caption", "augmented", "augmented"))
    differ = 0
    for seed in range(300):
        caption, first, second = prepare.texts(MANY, seed)
        numbers = {word for text in (first, second) for word in text.split() if word.isdigit()}
        assert numbers <= {caption.split()[-1]}
        differ += first != second
    assert differ > 100


def test_another_has_another_text_even_where_captions_repeat():
    twice = Record("twice", b"", ("a dog", "a dog ", "", "a cat"))
    choice = CaptionChoice()
    assert choice.distinct(twice) == 2
    for seed in range(50):
        assert choice.another(twice, "a dog", np.random.default_rng(seed)) == "a cat"
        assert choice.another(twice, "a cat", np.random.default_rng(seed)).strip() == "a dog"


@pytest.mark.parametrize("captions", [("a dog",), ("a dog", " a dog"), ("a dog", " ")])
def test_a_record_with_a_single_caption_is_a_bad_sample(captions):
    record = Record("alone", b"", captions)
    with pytest.raises(RecordError, match="has a single caption, and another one of the same image is wanted"):
        for seed in range(20):
            chosen = captions[0]
            CaptionChoice().another(record, chosen, np.random.default_rng(seed))
    assert CaptionChoice().distinct(record) == 1


def test_another_by_weights_is_drawn_from_the_other_texts_of_the_named_keys():
    prepare, counts = prepared(("caption", "another"), weights=WEIGHTS), Counter()
    for seed in range(4000):
        counts[tuple(prepare.texts(WEIGHTED, seed))] += 1
    # Of model captions the other one has weight 3, the real one 1; after the real one only model captions remain.
    expected = {
        ("real one", "model one"): 1 / 8, ("real one", "model two"): 1 / 8,
        ("model one", "real one"): 3 / 32, ("model one", "model two"): 9 / 32,
        ("model two", "real one"): 3 / 32, ("model two", "model one"): 9 / 32,
    }  # fmt: skip
    assert counts.keys() == expected.keys()
    for pair, share in expected.items():
        assert abs(counts[pair] / 4000 - share) < 5 * (share / 4000) ** 0.5, pair
    assert CaptionChoice(weights=WEIGHTS).distinct(WEIGHTED) == 3


def test_the_first_caption_alone_has_no_other():
    with pytest.raises(ConfigError, match=r"--captions first trains on one caption.*another"):
        prepared(("caption", "another"), captions="first")
    assert prepared(("caption", "augmented"), captions="first").texts(MANY, 0)[0] == MANY.captions[0]


@pytest.mark.parametrize("text", ["\u4e00", "a dog \u9fa5", "\u72d7 on grass"])
def test_captions_with_chinese_characters_are_bad_samples_where_that_is_asked_for(text):
    record = Record("chinese", b"", (text,))
    assert prepared(("caption",)).texts(record, 0) == [text]
    with pytest.raises(RecordError, match="the caption has Chinese characters") as raised:
        prepared(("caption",), bad_captions="cjk").texts(record, 0)
    assert raised.value.key == "chinese"


@pytest.mark.parametrize("text", ["caf\u00e9", "\u3042", "\uac00", "\u9fa6", "\u4dff"])
def test_other_scripts_are_not(text):
    assert prepared(("caption",), bad_captions="cjk").texts(Record("other", b"", (text,)), 0) == [text]


def test_another_is_chosen_among_the_good_captions_only():
    record = Record("mixed", b"", ("a dog", "\u72d7", "a cat"))
    for seed in range(30):
        assert CaptionChoice(bad="cjk").another(record, "a dog", np.random.default_rng(seed)) == "a cat"


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_captions_are_replaced_and_listed(tmp_path, workers):
    names = write_images(tmp_path, 8)
    captions = ["a dog", "\u72d7", "a cat", "a bird", "a \u72d7", "a cow", "a fox", "a hen"]
    rows = [{"image": name, "caption": caption} for name, caption in zip(names, captions, strict=True)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(str(tmp_path / "pairs.jsonl"))
    prepare = build_prepare(
        Wants(), get_tokenizer("bpe"), ViewOptions(8), "first", texts=TextViewOptions(bad_captions="cjk")
    )
    loader = Loader(source, prepare, LoaderOptions(8, workers=workers, bad_samples="replace", bad_limit=1.0, epochs=1))
    (batch, _) = next(iter(loader))
    assert len(batch.keys) == 8 and {reason for _, reason in loader.bad} == {"the caption has Chinese characters"}
    assert not {source.record(1).key, source.record(4).key} & set(batch.keys)


def test_captions_as_records_of_their_own_have_no_other(tmp_path):
    names = write_images(tmp_path, 1)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"image": names[0], "captions": ["a dog", "a cat"]}))
    source = CaptionPerRecord(open_source(str(tmp_path / "pairs.jsonl")))
    with pytest.raises(RecordError, match="single caption"):
        prepared(("caption", "another")).texts(source.record(1), 0)
