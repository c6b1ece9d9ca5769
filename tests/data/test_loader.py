"""What the loader does with bad records, odd sizes and several views."""

import json
import os

import pytest
import torch

from diptych.data import Loader, LoaderOptions, Position, SourceOptions, build_prepare, collate, open_source
from diptych.errors import ConfigError, RecordError, SourceError
from diptych.image import ViewOptions
from diptych.text import get_tokenizer
from diptych.types import Wants

from .world import COUNT, write_images, write_jsonl


def prepare(wants=None, training=True, context=77):
    wants = wants or Wants(images=("crop" if training else "eval",))
    options = ViewOptions(8, scale=(0.3, 1.0))
    return build_prepare(wants, get_tokenizer("bpe", context), options, captions="random" if training else "first")


@pytest.fixture
def broken(tmp_path):
    """The world with one image truncated and one caption empty."""
    spec = write_jsonl(tmp_path)
    image = tmp_path / "img" / "05.png"
    image.write_bytes(image.read_bytes()[:40])
    lines = (tmp_path / "pairs.jsonl").read_text().splitlines()
    lines[9] = json.dumps({"image": "img/09.png", "captions": ["  "]})
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    return spec


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_record_stops_the_run_with_its_name(broken, workers):
    loader = Loader(open_source(broken), prepare(), LoaderOptions(batch_size=COUNT, workers=workers))
    with pytest.raises(RecordError) as caught:
        next(iter(loader))
    assert "img/05.png" in str(caught.value) or "img/09.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_record_is_replaced_and_remembered_when_asked(broken):
    results = []
    for workers in (0, 2):
        loader = Loader(
            open_source(broken), prepare(), LoaderOptions(batch_size=COUNT, workers=workers, bad_samples="replace")
        )
        batch, _ = next(iter(loader))
        assert len(batch.keys) == COUNT
        assert {key.partition("#")[0] for key, _ in loader.bad} == {"img/05.png", "img/09.png"}
        assert {reason for _, reason in loader.bad} >= {"the caption is empty"}
        results.append(batch.keys)
    assert results[0] == results[1]


def test_nothing_but_bad_records_is_an_error_not_a_loop(tmp_path):
    spec = write_jsonl(tmp_path)
    for path in (tmp_path / "img").iterdir():
        path.write_bytes(b"")
    with pytest.raises(SourceError, match="16 records in a row were bad"):
        next(iter(Loader(open_source(spec), prepare(), LoaderOptions(batch_size=2, bad_samples="replace"))))


def test_too_few_records_for_a_batch_is_one_line(tmp_path):
    with pytest.raises(SourceError, match="lower --batch-size"):
        Loader(open_source(write_jsonl(tmp_path)), prepare(), LoaderOptions(batch_size=COUNT + 1))


def test_wrong_numbers_are_one_line(tmp_path):
    source = open_source(write_jsonl(tmp_path))
    with pytest.raises(ConfigError, match="--batch-size 0"):
        Loader(source, prepare(), LoaderOptions(batch_size=0))
    with pytest.raises(ConfigError, match="partial batch"):
        Loader(source, prepare(), LoaderOptions(batch_size=2, ranks=2, drop_last=False))


def test_views_differ_and_captions_follow_the_seed(tmp_path):
    names = write_images(tmp_path, 1)
    rows = {"image": names[0], "captions": [f"caption {number}" for number in range(50)]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(rows))
    record = open_source(str(tmp_path / "pairs.jsonl")).record(0)
    many = prepare(Wants(images=("crop",) * 3, texts=("caption",) * 2))
    sample = many(record, 1)
    assert sample.images.shape == (3, 3, 8, 8)
    assert len(sample.tokens) == 2
    assert many(record, 1).tokens[0].tolist() == sample.tokens[0].tolist()
    assert len({tuple(prepare()(record, seed).tokens[0].tolist()) for seed in range(40)}) > 15
    first = prepare(training=False)(record, 7).tokens[0].tolist()
    assert first == get_tokenizer("bpe").encode("caption 0").ids.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_truncations_are_counted_by_data_set(tmp_path, workers):
    names = write_images(tmp_path, 4)
    for number, words in enumerate((3, 12, 30)):
        rows = [json.dumps({"image": name, "caption": "word " * words}) for name in names]
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "pairs.jsonl").write_text("\n".join(rows))
    options = SourceOptions(image_root=str(tmp_path))
    source = open_source("::".join(str(tmp_path / str(n) / "pairs.jsonl") for n in range(3)), options=options)
    loader = Loader(source, prepare(context=12), LoaderOptions(batch_size=4, workers=workers, epochs=2))
    for _ in loader:
        pass
    assert loader.truncation == {"0/pairs.jsonl": (8, 0, 0), "1/pairs.jsonl": (8, 8, 16), "2/pairs.jsonl": (8, 8, 160)}
    alone = Loader(
        open_source(str(tmp_path / "1" / "pairs.jsonl"), options=options),
        prepare(context=12),
        LoaderOptions(batch_size=2, epochs=1),
    )
    list(alone)
    assert alone.truncation == {"pairs.jsonl": (4, 4, 8)}


def test_a_batch_is_padded_to_its_own_longest_caption_and_counts_cuts(tmp_path):
    names = write_images(tmp_path, 3)
    captions = ["a dog", "word " * 30, "an end <|endoftext|> here"]
    rows = [json.dumps({"image": name, "caption": text}) for name, text in zip(names, captions, strict=True)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    source = open_source(str(tmp_path / "pairs.jsonl"))
    batch = collate([prepare(training=False, context=12)(source.record(index), 0) for index in range(3)])
    assert batch.tokens.shape == (1, 3, 12)
    assert batch.lengths.tolist() == [[4, 12, 3]]  # the third ends at the end token that stands in its text
    assert batch.num_truncated == 20
    assert batch.images.dtype.is_floating_point is False
    assert batch.labels is None


def test_the_position_rolls_over_at_the_end_of_an_epoch(tmp_path):
    iterator = iter(Loader(open_source(write_jsonl(tmp_path)), prepare(), LoaderOptions(batch_size=10)))
    assert [next(iterator)[1] for _ in range(3)] == [Position(0, 10), Position(1, 0), Position(1, 10)]


def test_training_draws_among_captions_or_keeps_to_the_first(tmp_path):
    write_images(tmp_path, 1)
    (tmp_path / "one.jsonl").write_text(json.dumps({"image": "img/00.png", "captions": ["a cat", "a dog", "an owl"]}))
    record, tokenizer = open_source(str(tmp_path / "one.jsonl")).record(0), get_tokenizer("bpe")

    def seen(captions):
        made = build_prepare(Wants(), tokenizer, ViewOptions(8), captions=captions)
        return {tokenizer.decode(made(record, seed).tokens[0]) for seed in range(40)}

    assert seen("random") == {"a cat", "a dog", "an owl"}
    assert seen("first") == {"a cat"}


def test_batches_that_are_kept_stay_as_they_came(tmp_path):
    """Pixels travel through memory that a loader process uses again and again: what has arrived must not change."""
    source = open_source(write_jsonl(tmp_path))
    loader = Loader(source, prepare(), LoaderOptions(batch_size=4, workers=2, epochs=3))
    batches = [batch.images for batch, _ in loader]
    plain = [batch.images for batch, _ in Loader(source, prepare(), LoaderOptions(batch_size=4, workers=0, epochs=3))]
    assert len(batches) == len(plain) == 15
    assert all(torch.equal(one, two) for one, two in zip(batches, plain, strict=True))
    batches[0].fill_(3)  # and it is this process's own to write to
    assert int(batches[0].max()) == 3


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_no_descriptors_pile_up(tmp_path):
    source = open_source(write_jsonl(tmp_path))
    loader = iter(Loader(source, prepare(), LoaderOptions(batch_size=4, workers=1)))
    for _ in range(20):
        next(loader)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        next(loader)
    assert len(os.listdir("/proc/self/fd")) <= before + 2
