"""Views by name: each draws from a stream of its own; what cannot be given is an error when the run is built."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from diptych.data import Loader, LoaderOptions, build_prepare, collate, open_source
from diptych.data._prepare import Stream
from diptych.errors import ConfigError
from diptych.image import VIEWS, ViewOptions, decode_pixels
from diptych.text import get_tokenizer
from diptych.types import IGNORED, MaskedSample, Sample, Wants

from .world import write_images

OPTIONS = ViewOptions(12, scale=(0.2, 1.0))


BPE = type(get_tokenizer("bpe"))
MASKING = BPE(77, 49_408)  # DeCLIP's mask token, above the end token


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """One photo with fifty captions, and one with a single one."""
    folder = tmp_path_factory.mktemp("captions")
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    names = write_images(folder, 2)
    from PIL import Image

    for number, name in enumerate(names):
        Image.fromarray(noise[:, :: -1 if number else 1]).save(folder / name)
    captions = [[f"caption number {number} of a dog" for number in range(50)], ["a cat that sleeps on the red sofa"]]
    rows = [{"image": name, "captions": some} for name, some in zip(names, captions, strict=True)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return open_source(str(folder / "pairs.jsonl"))


def prepared(images=("crop",), texts=("caption",), **options):
    return build_prepare(Wants(images, texts), get_tokenizer("bpe"), OPTIONS, **options)


def test_each_view_is_its_recipe_with_the_stream_of_its_name_and_number(source):
    record, seed = source.record(0), 1234
    sample = prepared(("strong", "crop", "strong", "eval"))(record, seed)
    pixels = decode_pixels(record.image)
    for row, (name, number) in enumerate((("strong", 0), ("crop", 0), ("strong", 1), ("eval", 0))):
        alone = VIEWS[name](OPTIONS)(pixels, Stream.of("image", name, number).generator(seed))
        assert np.array_equal(sample.images[row], alone)
    assert sample.seed == seed


def test_a_name_that_stands_twice_gives_two_views_and_more_views_change_none(source):
    record = source.record(0)
    few = prepared(("crop", "strong"), ("caption",))
    many = prepared(("strong", "eval", "crop", "strong", "crop"), ("caption", "caption"))
    differ = []
    for seed in range(30):
        one, two = few(record, seed), many(record, seed)
        assert np.array_equal(one.images[0], two.images[2])
        assert np.array_equal(one.images[1], two.images[0])
        assert one.tokens[0].tolist() == two.tokens[0].tolist()
        assert not np.array_equal(two.images[0], two.images[3])
        assert not np.array_equal(two.images[2], two.images[4])
        differ.append(two.tokens[0].tolist() != two.tokens[1].tolist())
    assert sum(differ) > 24  # of fifty captions two draws are rarely one


def test_images_do_not_depend_on_the_texts_nor_texts_on_the_images(source):
    record = source.record(0)
    plain, other = prepared(("crop",), ("caption",)), prepared(("crop",), ("caption",), captions="first")
    assert all(np.array_equal(plain(record, seed).images, other(record, seed).images) for seed in range(5))
    strong = prepared(("strong",))
    assert all(plain(record, seed).tokens[0].tolist() == strong(record, seed).tokens[0].tolist() for seed in range(5))


def test_views_of_different_names_do_not_share_randomness():
    draws = {
        (kind, name, number): Stream.of(kind, name, number).generator(7).integers(0, 2**62)
        for kind in ("image", "text", "mask") for name in ("crop", "strong", "caption") for number in range(3)
    }  # fmt: skip
    assert len(set(draws.values())) == 27
    assert Stream.of("image", "crop", 0).generator(7).integers(0, 2**62) != Stream.of("image", "crop", 0).generator(
        8
    ).integers(0, 2**62)


def test_a_modality_that_nobody_wants_is_empty_and_not_read(source):
    record = source.record(0)
    texts = build_prepare(Wants(images=()), get_tokenizer("bpe"), OPTIONS)(dataclasses.replace(record, image=b""), 1)
    assert texts.images.shape == (0, 3, 0, 0)
    images = build_prepare(Wants(texts=()), get_tokenizer("bpe"), OPTIONS)(dataclasses.replace(record, captions=()), 1)
    assert images.tokens == images.lengths == ()
    batch = collate([texts, texts])
    assert (batch.images.shape, batch.tokens.shape[:2]) == ((0, 2, 3, 0, 0), (1, 2))
    batch = collate([images, images])
    assert (batch.images.shape, batch.tokens.shape, batch.lengths.shape) == ((1, 2, 3, 12, 12), (0, 2, 0), (0, 2))


def test_unknown_views_are_named_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"unknown image view 'stronk'. Did you mean 'strong'\? Known: crop, eval, strong"
    ):
        prepared(("crop", "stronk"))
    with pytest.raises(ConfigError, match=r"unknown text view 'captoin'. Did you mean 'caption'\?"):
        prepared(texts=("captoin",))


def test_an_augmented_text_is_another_text_and_follows_the_seed(source):
    record, tokenizer = source.record(1), get_tokenizer("bpe")
    both = prepared(texts=("caption", "augmented"))
    seen = {tokenizer.decode(both(record, seed).tokens[1]) for seed in range(30)}
    assert len(seen) > 10
    assert {tokenizer.decode(both(record, seed).tokens[0]) for seed in range(30)} == {record.captions[0]}
    assert both(record, 3).tokens[1].tolist() == both(record, 3).tokens[1].tolist()


def test_masked_tokens_without_a_mask_token_are_an_error_at_build():
    with pytest.raises(ConfigError, match="the tokenizer 'bpe' has no mask token"):
        build_prepare(Wants(masked=True), get_tokenizer("bpe"), OPTIONS)
    with pytest.raises(ConfigError, match="no text view is wanted"):
        build_prepare(Wants(texts=(), masked=True), MASKING, OPTIONS)


@pytest.mark.parametrize("workers", [0, 1])
def test_masked_tokens_arrive_with_their_targets(source, workers):
    prepare = build_prepare(Wants(masked=True), MASKING, OPTIONS)
    loader = Loader(source, prepare, LoaderOptions(2, workers=workers, seed=1))
    masks = set()
    for (batch, _), _ in zip(loader, range(12), strict=False):
        tokens, masked = batch.tokens[0], batch.masked
        assert masked.tokens.shape == masked.targets.shape == tokens.shape
        predicted = masked.targets != IGNORED
        assert torch.equal(masked.targets[predicted], tokens[predicted])
        assert torch.equal(masked.tokens[~predicted], tokens[~predicted])
        for row, length in enumerate(batch.lengths[0].tolist()):
            assert not predicted[row, length - 1 :].any()  # neither the end nor padding
            assert not predicted[row, 0]
        masks.add(tuple(predicted.flatten().tolist()))
    assert len(masks) > 6
    plain = build_prepare(Wants(), MASKING, OPTIONS)(source.record(1), 5)
    assert plain.masked is None
    assert prepare(source.record(1), 5).tokens[0].tolist() == plain.tokens[0].tolist()


def sample(key, ids, length, **others):
    ids = np.array(ids)
    return Sample(np.full((1, 3, 2, 2), 5, np.uint8), (ids,), (length,), key, others.pop("index", 0), 9, 1, **others)


def test_a_batch_carries_the_tokenizer_s_lengths_and_pads_masks_as_its_tokens():
    """A mask or another special token may be larger than the end token: its position is carried, never searched for."""
    mask = MaskedSample(np.array([1, 99, 3]), np.array([IGNORED, 2, IGNORED]))
    long = MaskedSample(np.array([1, 8, 99, 7, 3]), np.array([IGNORED, IGNORED, 6, IGNORED, IGNORED]))
    batch = collate(
        [sample("a", [1, 99, 3], 3, masked=mask, index=4), sample("b", [1, 8, 6, 7, 3], 5, masked=long, index=2)],
        epoch=3,
    )
    assert batch.lengths.tolist() == [[3, 5]]
    assert batch.tokens.tolist() == [[[1, 99, 3, 0, 0], [1, 8, 6, 7, 3]]]
    assert batch.masked.tokens.tolist() == [[1, 99, 3, 0, 0], [1, 8, 99, 7, 3]]
    assert batch.masked.targets.tolist() == [[IGNORED, 2] + [IGNORED] * 3, [IGNORED, IGNORED, 6, IGNORED, IGNORED]]
    assert (batch.epoch, batch.indices.tolist(), batch.seeds.tolist()) == (3, [4, 2], [9, 9])


def test_a_loader_fills_short_captions_with_the_tokenizer_s_padding(source):
    """SigLIP's tower attends to padding: another id there would be another text."""

    class Padding(BPE):
        pad_id = 17

    batch, _ = next(
        iter(Loader(source, build_prepare(Wants(masked=True), Padding(77, 49_408), OPTIONS), LoaderOptions(2)))
    )
    first, second = batch.lengths[0].tolist()
    row, shorter = int(second < first), min(first, second)
    assert first != second
    assert set(batch.tokens[0, row, shorter:].tolist()) == {17}
    assert set(batch.masked.tokens[row, shorter:].tolist()) == {17}
    assert set(batch.masked.targets[row, shorter:].tolist()) == {IGNORED}


def test_a_batch_of_some_samples_with_masks_or_features_is_refused():
    mask = MaskedSample(np.array([1, 9, 3]), np.array([IGNORED, 2, IGNORED]))
    with pytest.raises(ValueError, match="1 of 2 samples have masked tokens"):
        collate([sample("a", [1, 2, 3], 3, masked=mask), sample("b", [1, 2, 3], 3)])
    with pytest.raises(ValueError, match="1 of 2 samples have precomputed features"):
        collate([sample("a", [1, 2, 3], 3, features=np.zeros(4, np.float32)), sample("b", [1, 2, 3], 3)])
