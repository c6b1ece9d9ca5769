"""Locked towers: they stay as they were, and training on features computed once is training on pictures."""

from __future__ import annotations

import pytest
import torch

from diptych import weights
from diptych.data import PRECOMPUTED_FEATURES, open_source
from diptych.errors import ConfigError
from diptych.image import TrainTransform, decode_image
from diptych.models import create_model
from diptych.train import locked_features
from tests.train.test_loop import assert_identical, losses, pairs, run, tensors  # noqa: F401 (pairs is a fixture)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def start(tmp_path):
    torch.manual_seed(3)
    weights.save(tmp_path / "start.safetensors", create_model("tiny-test"))
    return str(tmp_path / "start.safetensors")


@pytest.mark.parametrize(
    ("flag", "kept", "moved"), [("--lock-image", "image.", "text."), ("--lock-text", "text.", "image.")]
)
def test_a_locked_tower_stays_as_it_was(pairs, tmp_path, start, flag, kept, moved):  # noqa: F811
    run(pairs, tmp_path / "a", "--pretrained", start, flag, "--max-steps", "3")
    before, after = weights.load(start).state_dict(), tensors(tmp_path / "a")
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith(kept))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(moved))


def test_a_locked_tower_is_in_evaluation_mode_whatever_is_asked():
    model = create_model("tiny-test").lock(image=True).train()
    assert model.training and model.text.training and not model.image.training
    assert not any(parameter.requires_grad for parameter in model.image.parameters())
    assert model.eval().train().image.training is False


def test_features_computed_once_train_as_the_pictures_do(pairs, tmp_path, start, monkeypatch):  # noqa: F811
    """The plain twin crops as evaluation does and runs the tower every step."""
    flags = ("--pretrained", start, "--lock-image", "--max-steps", "12")
    run(pairs, tmp_path / "cached", *flags, "--cache-features")

    def as_in_evaluation(self, image, rng):
        look = weights.transforms(weights.load(start).config)[1].transform
        return look(image).numpy()

    monkeypatch.setattr(TrainTransform, "__call__", as_in_evaluation)
    run(pairs, tmp_path / "plain", *flags)
    for (step, one), (_, two) in zip(losses(tmp_path / "cached"), losses(tmp_path / "plain"), strict=True):
        assert one == pytest.approx(two, rel=1e-5), step


def test_no_picture_is_decoded_after_the_first_pass(pairs, tmp_path, start, monkeypatch):  # noqa: F811
    flags = ("--pretrained", start, "--lock-image", "--cache-features", "--max-steps", "12")
    run(pairs, tmp_path / "a", *flags)

    def refuse(*given):
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr("diptych.data._prepare.decode_pixels", refuse)
    monkeypatch.setattr("diptych.evaluate._encode.decode_pixels", refuse)
    run(pairs, tmp_path / "b", *flags)  # its features come from the cache
    assert_identical(tmp_path / "a", tmp_path / "b")


def test_a_run_on_features_resumes_bit_by_bit(pairs, tmp_path, start):  # noqa: F811
    flags = ("--pretrained", start, "--lock-image", "--cache-features", "--max-steps", "9")
    run(pairs, tmp_path / "a", *flags)
    run(pairs, tmp_path / "b", *flags, "--stop-after", "4")
    run(pairs, tmp_path / "b", *flags, "--resume", "latest")
    assert_identical(tmp_path / "a", tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_records_carry_the_features_of_their_picture(pairs, tmp_path, start, monkeypatch):  # noqa: F811
    made = []
    monkeypatch.setattr(locked_features, "FeatureSource", lambda *given: made.append(Known(*given)) or made[-1])
    run(pairs, tmp_path / "a", "--pretrained", start, "--lock-image", "--cache-features", "--max-steps", "1")
    model = weights.load(start).eval()
    look = weights.transforms(model.config)[1].transform
    source = open_source(pairs)
    for index in range(0, len(source), 5):
        with torch.no_grad():
            expected = model.encode_image(look(decode_image(source.record(index).image))[None])[0]
        found = torch.from_numpy(made[0].record(index).extra[PRECOMPUTED_FEATURES])
        assert torch.allclose(found, expected, atol=1e-5)


Known = locked_features.FeatureSource


def test_an_unreadable_picture_is_a_bad_sample_like_any_other(pairs, tmp_path, start):  # noqa: F811
    image = open_source(pairs).record(3).image
    image.write_bytes(b"<html>")
    folder = tmp_path / "a"
    flags = ("--pretrained", start, "--lock-image", "--cache-features", "--max-steps", "12", "--bad-samples-max", "0.9")
    run(pairs, folder, *flags)
    assert "could not be read" in (folder / "bad_samples.jsonl").read_text()
    with pytest.raises(Exception, match="could not be read"):
        run(pairs, tmp_path / "b", *flags, "--bad-samples", "raise")


def test_locks_that_make_no_sense_are_one_clear_line(pairs, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match="nothing to train"):
        run(pairs, tmp_path / "a", "--lock-image", "--lock-text")
    with pytest.raises(ConfigError, match="needs --lock-image"):
        run(pairs, tmp_path / "a", "--cache-features")
