"""Folders that transformers wrote give its features in Diptych, and folders that we write give ours in transformers."""

import json

import pytest
import torch

from diptych import weights
from diptych.errors import WeightsError
from diptych.models import create_model
from diptych.weights import convert

from . import peers

MAKERS = {
    "clip-quick": lambda: peers.clip(),
    "clip-gelu-wide": lambda: peers.clip("gelu", wide=2),
    "siglip": lambda: peers.siglip(),
    "siglip-exact-wide": lambda: peers.siglip("gelu", width=128),
    "siglip2": lambda: peers.siglip2(),
}


def inputs(config):
    torch.manual_seed(1)
    pixels = torch.randn(3, 3, config.vision.image_size, config.vision.image_size)
    ids = torch.randint(2, config.text.vocab_size - 3, (3, config.text.context_length))
    if config.text.family == "transformer":
        for row, end in enumerate((2, 40, 76)):
            ids[row, end:] = config.text.vocab_size - 1
    return pixels, ids


@pytest.mark.parametrize("name", MAKERS)
def test_features_equal_those_of_transformers(name, tmp_path):
    theirs = MAKERS[name]()
    theirs.save_pretrained(tmp_path)
    ours = weights.load(tmp_path)
    pixels, ids = inputs(ours.config)
    image, text = peers.features(theirs, pixels, ids)
    with torch.no_grad():
        assert (ours.encode_image(pixels) - image).abs().max() < 1e-5
        assert (ours.encode_text(ids) - text).abs().max() < 1e-5
        assert image.std() > 0.05
        assert text.std() > 0.05
    assert ours.logit_scale.item() == pytest.approx(theirs.logit_scale.item())
    if ours.logit_bias is not None:
        assert ours.logit_bias.item() == pytest.approx(theirs.logit_bias.item())


@pytest.mark.parametrize("name", ["clip-quick", "clip-gelu-wide", "siglip", "siglip-exact-wide"])
def test_what_we_write_transformers_opens(name, tmp_path):
    MAKERS[name]().save_pretrained(tmp_path / "a")
    _, proof = convert(tmp_path / "a", "hf", tmp_path / "b")
    assert proof.holds
    theirs = MAKERS[name]()
    again = type(theirs).from_pretrained(tmp_path / "b").eval()
    for key, item in theirs.state_dict().items():
        assert torch.equal(item, again.state_dict()[key]), key
    assert again.config.text_config.hidden_act == theirs.config.text_config.hidden_act
    pixels, ids = inputs(weights.load(tmp_path / "a").config)
    for before, after in zip(peers.features(theirs, pixels, ids), peers.features(again, pixels, ids), strict=True):
        assert torch.equal(before, after)


def test_shards_and_an_index_are_followed(tmp_path):
    theirs = peers.clip()
    theirs.save_pretrained(tmp_path, max_shard_size="2MB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    ours = weights.load(tmp_path)
    assert torch.equal(ours.image.ln_post.weight, theirs.vision_model.post_layernorm.weight)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    (tmp_path / first).rename(tmp_path / "away")
    with pytest.raises(WeightsError, match="is not beside it"):
        weights.load(tmp_path)
    index["weight_map"]["logit_scale"] = "../../secret"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="outside of its folder"):
        weights.load(tmp_path)


def test_the_text_tokenizer_opens_in_transformers(tmp_path):
    from transformers import CLIPTokenizer

    peers.clip().save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", "hf", tmp_path / "b")
    theirs = CLIPTokenizer.from_pretrained(tmp_path / "b")
    ours = weights.get_tokenizer(tmp_path / "b")
    for text in ("a photo of a dog", "Über-façade, 12:30!", "it's 🐱"):
        ids = ours.encode(text).ids.tolist()
        assert theirs(text)["input_ids"] == ids


@pytest.mark.parametrize(
    ("size", "crop", "do_crop", "mode", "to"),
    [
        ({"shortest_edge": 48}, {"height": 48, "width": 48}, True, "shortest", 0),
        ({"shortest_edge": 64}, {"height": 48, "width": 48}, True, "shortest", 64),
        ({"height": 48, "width": 48}, None, False, "squash", 0),
        (48, 48, True, "shortest", 0),
    ],
)
def test_preprocessing_travels(tmp_path, size, crop, do_crop, mode, to):
    first, second = tmp_path / "a", tmp_path / "b"
    peers.clip().save_pretrained(first)
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2, "size": size}
    values |= {"crop_size": crop, "do_center_crop": do_crop}
    (first / "preprocessor_config.json").write_text(json.dumps(values))
    model = weights.load(first)
    preprocess = model.config.preprocess
    assert (preprocess.resize_mode, preprocess.interpolation, preprocess.resize_to) == (mode, "bilinear", to)
    assert model.image.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    convert(first, "hf", second)
    assert weights.load(second).config == model.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "a 'bert' model"),
        ({"vision_config": {"hidden_act": "relu"}}, "activation 'relu'"),
        ({"vision_config": "x"}, "not a config of CLIP"),
    ],
)
def test_a_config_that_is_not_ours_to_read_is_one_line(tmp_path, change, message):
    peers.clip(vocabulary=500).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for key, value in change.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(tmp_path)
    assert "\n" not in caught.value.line
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"without its config\.json"):
        weights.load(tmp_path)


def test_transformers_has_no_resnet(tmp_path):
    weights.save(tmp_path / "model.safetensors", create_model("tiny-test-resnet"))
    with pytest.raises(WeightsError, match="has a ResNet"):
        convert(tmp_path, "hf", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
