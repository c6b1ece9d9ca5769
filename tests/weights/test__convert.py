"""The proof of a conversion: its inputs, its numbers, and what happens to the folder."""

import dataclasses

import pytest
import torch

from diptych import weights
from diptych.errors import ConfigError, OutputError, WeightsError
from diptych.models import model_config
from diptych.weights import CHECKPOINT_FORMATS, Parity, convert, format_names
from diptych.weights._convert import ALIASES, parity, probe_inputs

from .test_formats import declip_shaped, random_model, small


@pytest.fixture
def saved(tmp_path):
    weights.save(tmp_path / "a.safetensors", random_model(small()))
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize(("image", "text", "holds"), [(1e-5, 1e-5, True), (1.1e-5, 0.0, False), (0.0, 1.1e-5, False)])
def test_a_proof_holds_when_both_towers_agree(image, text, holds):
    assert Parity(image, 1.0, text, 1.0, 4).holds is holds


def test_parity_is_of_unit_features_and_sees_each_tower():
    first, second = random_model(small()), random_model(small())
    same = parity(first, second)
    assert (same.image_difference, same.text_difference, same.inputs) == (0.0, 0.0, 4)
    assert min(same.image_cosine, same.text_cosine) == pytest.approx(1.0)
    with torch.no_grad():
        second.image.projection.weight.mul_(-3.0)  # the opposite unit vector, whatever the length
        second.text.projection.weight.mul_(3.0)
    turned = parity(first, second)
    assert turned.image_cosine == pytest.approx(-1.0, abs=1e-5)
    assert 0.2 < turned.image_difference <= 2.0
    assert turned.text_difference < 1e-6 and turned.text_cosine == pytest.approx(1.0)
    with torch.no_grad():
        second.text.projection.weight[0] = 0.0
    assert parity(first, second).text_difference > 1e-3


def test_the_inputs_are_fixed_and_end_at_every_length():
    config = small()
    images, ids = probe_inputs(config)
    assert (images.shape, images.dtype, ids.shape) == ((4, 3, 48, 48), torch.uint8, (4, 77))
    assert torch.equal(images, probe_inputs(config)[0]) and torch.equal(ids, probe_inputs(config)[1])
    assert images.min() == 0 and images.max() == 255
    assert ids.argmax(1).tolist() == [2, 26, 51, 76]
    assert ids.max(1).values.tolist() == [49407] * 4
    assert (ids == 49407).sum() == 4 and (ids[0, 3:] == 0).all() and (ids[0, :2] > 1).all()
    # DeCLIP's mask id follows the end; a smaller vocabulary ends with its last id.
    assert probe_inputs(declip_shaped())[1].max() == 49407
    few = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=500))
    assert probe_inputs(few)[1].max(1).values.tolist() == [499] * 4
    whole = probe_inputs(model_config("tiny-test-siglip"))[1]
    assert (whole > 1).all()


def test_formats_and_their_other_names():
    assert format_names() == ["declip", "diptych", "hf", "openai", "openclip", "paddle"]
    assert set(ALIASES.values()) <= set(CHECKPOINT_FORMATS.names())


@pytest.mark.parametrize("to", ["transformers", "open_clip", "pdparams", "diptych"])
def test_other_names_are_taken(to, saved, tmp_path):
    path, proof = convert(saved, to, tmp_path / "new")
    assert path.is_file() and path.parent == tmp_path / "new" and proof.holds
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.safetensors", "new"]


def test_precision_is_that_of_the_new_file(saved, tmp_path):
    convert(saved, "diptych", tmp_path / "half", precision="bf16")
    assert weights.load(tmp_path / "half", precision="file").text.projection.weight.dtype == torch.bfloat16
    convert(saved, "diptych", tmp_path / "file")
    assert weights.load(tmp_path / "file", precision="file").text.projection.weight.dtype == torch.float32


def test_an_empty_folder_is_used_and_a_taken_path_is_not(saved, tmp_path):
    (tmp_path / "empty").mkdir()
    assert convert(saved, "diptych", tmp_path / "empty")[0] == tmp_path / "empty" / "model.safetensors"
    with pytest.raises(OutputError, match=r"a\.safetensors already holds something; give a new folder"):
        convert(saved, "diptych", saved)
    with pytest.raises(OutputError, match="could not be written"):
        convert(saved, "diptych", saved / "below")
    with pytest.raises(ConfigError, match=r"unknown checkpoint format 'diptic'\. Did you mean 'diptych'"):
        convert(saved, "diptic", tmp_path / "other")


def test_a_vocabulary_goes_with_the_weights(tmp_path):
    weights.save(tmp_path / "a" / "model.safetensors", random_model(model_config("tiny-test-siglip")))
    (tmp_path / "a" / "spiece.model").write_bytes(b"pieces")
    convert(tmp_path / "a", "diptych", tmp_path / "b")
    assert (tmp_path / "b" / "spiece.model").read_bytes() == b"pieces"
    weights.save(tmp_path / "c" / "model.safetensors", random_model(model_config("tiny-test")))
    (tmp_path / "c" / "tokenizer.json").write_text("{}")  # CLIP's is built in
    convert(tmp_path / "c", "diptych", tmp_path / "d")
    assert [entry.name for entry in (tmp_path / "d").iterdir()] == ["model.safetensors"]


def test_a_failed_proof_says_by_how_much(saved, tmp_path, monkeypatch):
    from diptych.weights import _convert

    monkeypatch.setattr(_convert, "parity", lambda *_: Parity(0.25, 0.9, 0.5, 0.8, 4))
    with pytest.raises(WeightsError, match=r"not written: .* differ by 0\.25 \(images\) and 0\.5 \(texts\)"):
        convert(saved, "openclip", tmp_path / "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("name", ["openclip", "openai", "hf", "paddle"])
def test_formats_of_clip_lose_the_row_of_the_mask_token_and_say_so(name, tmp_path, capsys):
    text = dataclasses.replace(small().text, vocab_size=49409)
    model = random_model(small(text=text))
    weights.save(tmp_path / "a.safetensors", model)
    path, proof = convert(tmp_path / "a.safetensors", name, tmp_path / "new")
    assert proof.holds and capsys.readouterr().err.count("mask token") == 1
    written = weights.load(path)
    assert written.config.text.vocab_size == 49408
    assert torch.equal(written.text.token_embedding.weight, model.text.token_embedding.weight[:49408])


@pytest.mark.parametrize("name", ["declip", "diptych"])
def test_formats_that_know_the_mask_token_keep_its_row(name, tmp_path, capsys):
    model = random_model(declip_shaped())
    weights.save(tmp_path / "a.safetensors", model)
    written = weights.load(convert(tmp_path / "a.safetensors", name, tmp_path / "new")[0])
    assert torch.equal(written.text.token_embedding.weight, model.text.token_embedding.weight)
    assert "mask token" not in capsys.readouterr().err
