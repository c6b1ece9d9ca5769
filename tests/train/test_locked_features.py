"""Locked towers: they stay as they were, and training on features computed once is training on images."""

from __future__ import annotations

import os

import pytest
import torch

from diptych import weights
from diptych.commands.demo import EMOJI
from diptych.data import PRECOMPUTED_FEATURES, open_source
from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.errors import ConfigError
from diptych.evaluate import Encoder
from diptych.image import TrainTransform, decode, decode_image
from diptych.models import create_model
from diptych.train import locked_features
from diptych.train.locked_features import with_features
from diptych.types import Wants
from tests.distributed._processes import run_in_processes
from tests.train.runs import assert_identical, losses, run, tensors


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def start(tmp_path):
    torch.manual_seed(3)
    weights.save(tmp_path / "start.safetensors", create_model("tiny-test"))
    return str(tmp_path / "start.safetensors")


@pytest.mark.parametrize(
    ("flag", "locked", "moved"), [("--lock-image", "image.", "text."), ("--lock-text", "text.", "image.")]
)
def test_a_locked_tower_stays_as_it_was(pairs, tmp_path, start, flag, locked, moved):
    run(pairs, tmp_path / "a", "--pretrained", start, flag, "--max-steps", "3")
    before, after = weights.load(start).state_dict(), tensors(tmp_path / "a")
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith(locked))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(moved))


def test_a_locked_tower_is_in_evaluation_mode_whatever_is_asked():
    model = create_model("tiny-test").lock(image=True).train()
    assert model.training and model.text.training and not model.image.training
    assert not any(parameter.requires_grad for parameter in model.image.parameters())
    assert model.eval().train().image.training is False


def test_features_computed_once_train_as_the_images_do(pairs, tmp_path, start, monkeypatch):
    """The reference crops as evaluation does and runs the tower every step."""
    flags = ("--pretrained", start, "--lock-image", "--max-steps", "12")
    run(pairs, tmp_path / "cached", *flags, "--cache-features")

    def as_in_evaluation(self, image, rng):
        return weights.transforms(weights.load(start).config)[1].transform(image).numpy()

    monkeypatch.setattr(TrainTransform, "__call__", as_in_evaluation)
    run(pairs, tmp_path / "plain", *flags)
    for (step, cached), (_, plain) in zip(losses(tmp_path / "cached"), losses(tmp_path / "plain"), strict=True):
        assert cached == pytest.approx(plain, rel=1e-5), step


def test_no_image_is_decoded_after_the_first_pass(pairs, tmp_path, start, monkeypatch):
    flags = ("--pretrained", start, "--lock-image", "--cache-features", "--max-steps", "12")
    run(pairs, tmp_path / "a", *flags)

    decoded = []

    def counting(source, key, **options):
        decoded.append(key)
        return decode(source, key, **options)

    monkeypatch.setattr("diptych.data._prepare.decode", counting)
    monkeypatch.setattr("diptych.evaluate._decode.decode", counting)
    run(pairs, tmp_path / "b", *flags)  # its features come from the cache
    assert len(decoded) == 1  # the record that shows, before the first step, that the data can be read
    assert_identical(tmp_path / "a", tmp_path / "b")


def test_a_run_on_features_resumes_bit_by_bit(pairs, tmp_path, start):
    flags = ("--pretrained", start, "--lock-image", "--cache-features", "--max-steps", "9")
    run(pairs, tmp_path / "a", *flags)
    run(pairs, tmp_path / "b", *flags, "--stop-after", "4")
    run(pairs, tmp_path / "b", *flags, "--resume", "latest")
    assert_identical(tmp_path / "a", tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_records_carry_the_features_of_their_image(pairs, tmp_path, start, monkeypatch):
    sources = []
    monkeypatch.setattr(
        locked_features, "FeatureSource", lambda *given: sources.append(FeatureSource(*given)) or sources[-1]
    )
    run(pairs, tmp_path / "a", "--pretrained", start, "--lock-image", "--cache-features", "--max-steps", "1")
    model = weights.load(start).eval()
    transform = weights.transforms(model.config)[1].transform
    source = open_source(pairs)
    for index in range(0, len(source), 5):
        with torch.no_grad():
            expected = model.encode_image(transform(decode_image(source.record(index).image))[None])[0]
        features = torch.from_numpy(sources[0].record(index).extra[PRECOMPUTED_FEATURES])
        assert torch.allclose(features, expected, atol=1e-5)


FeatureSource = locked_features.FeatureSource


def test_an_unreadable_image_is_a_bad_sample_like_any_other(pairs, tmp_path, start):
    image = open_source(pairs).record(3).image
    image.write_bytes(b"<html>")
    folder = tmp_path / "a"
    flags = ("--pretrained", start, "--lock-image", "--cache-features", "--max-steps", "12", "--bad-samples-max", "0.9")
    run(pairs, folder, *flags)
    assert "could not be read" in (folder / "bad_samples.jsonl").read_text()
    with pytest.raises(Exception, match="could not be read"):
        run(pairs, tmp_path / "b", *flags, "--bad-samples", "raise")


def test_locks_that_make_no_sense_are_a_clear_line(pairs, tmp_path):
    with pytest.raises(ConfigError, match="nothing to train"):
        run(pairs, tmp_path / "a", "--lock-image", "--lock-text")
    with pytest.raises(ConfigError, match="needs --lock-image"):
        run(pairs, tmp_path / "a", "--cache-features")


@pytest.mark.parametrize("images", [("crop", "strong"), ("strong",), ("crop", "crop"), ()])
def test_features_of_other_views_than_the_crop_are_refused_before_anything_is_encoded(images):
    encoder = Encoder(create_model("tiny-test"), None, None, get_device("cpu"))
    with pytest.raises(ConfigError, match="--cache-features computes a single feature"):
        with_features(open_source(str(EMOJI / "held_out_names-*.tar.gz")), encoder, Wants(images=images))


@pytest.mark.heavy
def test_every_rank_gets_all_features(tmp_path):
    alone = _features(str(tmp_path / "alone"))
    for features in run_in_processes(2, _features, str(tmp_path / "shared")):
        assert torch.allclose(torch.tensor(features), torch.tensor(alone), atol=1e-5)


def _features(cache):
    os.environ["DIPTYCH_CACHE"] = cache
    torch.manual_seed(0)
    model = create_model("tiny-test")
    transform = weights.transforms(model.config)[1].transform
    encoder = Encoder(model, None, transform, get_device("cpu"), 32, shared=process_group.size() > 1)
    source = with_features(open_source(str(EMOJI / "held_out_names-*.tar.gz")), encoder, Wants())
    return [source.record(index).extra[PRECOMPUTED_FEATURES].tolist() for index in range(len(source))]
