"""What a loss needs of the model: a bias or scale that the weights lack is initialized with one line; theirs goes on."""

import dataclasses
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych import weights
from diptych.errors import WeightsError
from diptych.models import ModelNeeds, model_config
from diptych.weights import CHECKPOINT_FORMATS, convert
from diptych.weights._clip_names import NamingScheme, clip_rules
from diptych.weights._rename import to_theirs

from .test_formats import declip_shaped, random_model, small, timm_siglip

SIGLIP = ModelNeeds(logit_bias=-10.0, logit_scale=math.log(10))
NONE = ModelNeeds()
CLIP_PRESETS = ["tiny-test", "tiny-test-resnet", "tiny-test-clipa"]


@pytest.fixture
def presets(monkeypatch):
    """Lets ``create`` know architectures that are no preset."""
    known = {"small": small(), "declip": declip_shaped(), "timm": timm_siglip()}
    find = weights._load.model_config
    monkeypatch.setattr(weights._load, "model_config", lambda name: known.get(name) or find(name))


@pytest.fixture
def lines(capsys):
    """The lines of the log since the last call."""

    def read():
        return capsys.readouterr().err.splitlines()

    return read


def logits_are(model, bias, scale):
    assert model.logit_scale.item() == pytest.approx(scale, abs=1e-6)
    if bias is None:
        assert model.logit_bias is None and model.config.logit_bias is None
    else:
        assert model.logit_bias.shape == (1,) and model.logit_bias.dtype == torch.float32
        assert model.logit_bias.item() == pytest.approx(bias)
        assert model.logit_bias.requires_grad
        assert model.config.logit_bias is not None
    assert model.training


@pytest.mark.parametrize("name", [*CLIP_PRESETS, "tiny-test-siglip"])
def test_random_weights_begin_with_what_is_needed(name, lines):
    preset = model_config(name)
    logits_are(weights.create(name), preset.logit_bias, preset.logit_scale)
    logits_are(weights.create(name, needs=NONE), preset.logit_bias, preset.logit_scale)
    model = weights.create(name, needs=ModelNeeds(-3.0, 1.5))
    logits_are(model, -3.0, 1.5)
    assert (model.config.logit_bias, model.config.logit_scale) == (-3.0, 1.5)
    logits_are(weights.create(name, needs=ModelNeeds(logit_bias=-3.0)), -3.0, preset.logit_scale)
    logits_are(weights.create(name, needs=ModelNeeds(logit_scale=1.5)), preset.logit_bias, 1.5)
    assert lines() == []


def test_an_architecture_may_be_given_as_a_config(tmp_path):
    config = dataclasses.replace(model_config("tiny-test"), name="mine", embed_dim=24)
    logits_are(weights.create(config, needs=ModelNeeds(-3.0)), -3.0, config.logit_scale)
    weights.save(tmp_path / "model.safetensors", random_model(config))
    loaded = weights.create(config, str(tmp_path), ModelNeeds(-3.0))
    assert loaded.config == dataclasses.replace(config, logit_bias=-3.0)


@pytest.mark.parametrize("name", CLIP_PRESETS)
def test_clips_own_files_get_a_bias_and_go_on_with_their_scale(name, tmp_path, lines):
    model = random_model(model_config(name))
    with torch.no_grad():
        model.logit_scale.fill_(4.0)
    weights.save(tmp_path / "model.safetensors", model)
    loaded = weights.create(name, str(tmp_path), SIGLIP)
    logits_are(loaded, -10.0, 4.0)
    assert loaded.config == dataclasses.replace(model.config, logit_bias=-10.0)
    (line,) = lines()
    assert line.endswith("has no logit_bias; initialized as the loss needs: logit_bias -10.")
    assert torch.equal(loaded.text.projection.weight, model.text.projection.weight)
    logits_are(weights.create(name, str(tmp_path), NONE), None, 4.0)
    logits_are(weights.create(name, str(tmp_path)), None, 4.0)
    assert lines() == []
    # What was created so is saved and read as any model.
    weights.save(tmp_path / "again.safetensors", loaded)
    logits_are(weights.create(name, str(tmp_path / "again.safetensors"), ModelNeeds(5.0, 5.0)), -10.0, 4.0)
    assert lines() == []


def test_a_bias_of_the_weights_stays_though_the_loss_needs_none(tmp_path, lines):
    model = random_model(model_config("tiny-test-siglip"))
    with torch.no_grad():
        model.logit_bias.fill_(-16.5)
    weights.save(tmp_path / "model.safetensors", model)
    logits_are(weights.create("tiny-test-siglip", str(tmp_path), NONE), -16.5, model.logit_scale.item())
    (line,) = lines()
    assert line.endswith("has a logit_bias (-16.5), which stays, though the loss needs none.")
    logits_are(weights.create("tiny-test-siglip", str(tmp_path), SIGLIP), -16.5, model.logit_scale.item())
    logits_are(weights.create("tiny-test-siglip", str(tmp_path)), -16.5, model.logit_scale.item())
    assert lines() == []


@pytest.mark.parametrize(
    ("to", "name"),
    [("openai", "small"), ("openclip", "small"), ("huggingface", "small"), ("paddle", "small"), ("declip", "declip")],
)
def test_weights_of_every_format_without_a_bias_get_it(to, name, tmp_path, lines, presets):
    model = random_model(declip_shaped() if name == "declip" else small())
    with torch.no_grad():
        model.logit_scale.fill_(3.5)
    weights.save(tmp_path / "a.safetensors", model)
    convert(tmp_path / "a.safetensors", to, tmp_path / "new")
    lines()
    loaded = weights.create(name, str(tmp_path / "new"), SIGLIP)
    logits_are(loaded, -10.0, 3.5)
    assert len(lines()) == 1
    assert torch.equal(loaded.text.ln_final.weight, model.text.ln_final.weight)
    logits_are(weights.create(name, str(tmp_path / "new")), None, 3.5)
    assert lines() == []


def test_formats_that_can_hold_a_bias_are_tested_without_it():
    assert set(CHECKPOINT_FORMATS.names()) == {"openai", "openclip", "huggingface", "paddle", "declip"}


@pytest.mark.parametrize("to", ["openai", "openclip", "paddle"])
def test_a_clip_with_a_bias_goes_through_formats_that_name_it(to, tmp_path, lines, presets):
    model = random_model(small(logit_bias=-7.0))
    weights.save(tmp_path / "a.safetensors", model)
    convert(tmp_path / "a.safetensors", to, tmp_path / "new")
    loaded = weights.create("small", str(tmp_path / "new"), SIGLIP)
    logits_are(loaded, -7.0, model.logit_scale.item())
    assert lines() == []


def test_an_archive_of_names_without_a_scale_gets_the_needed_one(tmp_path, lines):
    model = random_model(model_config("ViT-Mini-8-64"))
    state = to_theirs(clip_rules(model.config, NamingScheme()), model.state_dict())
    del state["logit_scale"]
    torch.save(state, tmp_path / "a.pt")
    loaded = weights.create("ViT-Mini-8-64", str(tmp_path / "a.pt"), SIGLIP)
    logits_are(loaded, -10.0, math.log(10))
    (line,) = lines()
    assert "has no logit_bias and no logit_scale" in line and "logit_bias -10, logit_scale 2.303" in line
    with pytest.raises(WeightsError, match="missing: logit_scale"):
        weights.create("ViT-Mini-8-64", str(tmp_path / "a.pt"), ModelNeeds(logit_bias=-10.0))


@pytest.mark.heavy
def test_a_siglip_of_open_clip_without_its_bias(tmp_path, lines, presets):
    """Converted for inference: 0 as in open_clip, or what the loss needs; said either way."""
    weights.save(tmp_path / "a.safetensors", random_model(timm_siglip()))
    convert(tmp_path / "a.safetensors", "openclip", tmp_path / "new")
    path = tmp_path / "new" / "open_clip_model.safetensors"
    tensors = load_file(path)
    del tensors["logit_bias"]
    save_file(tensors, path)
    lines()
    loaded = weights.load(tmp_path / "new")
    assert loaded.logit_bias.tolist() == [0.0]
    (line,) = lines()
    assert line.endswith("has no logit_bias; set to 0, which changes no ranking.")
    loaded = weights.create("timm", str(tmp_path / "new"), SIGLIP)
    logits_are(loaded, -10.0, loaded.logit_scale.item())
    (line,) = lines()
    assert "initialized as the loss needs: logit_bias -10" in line
