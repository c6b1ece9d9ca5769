"""Whatever is saved can be read back; a state that could not be is refused before anything is written."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from diptych import weights
from diptych.errors import OutputError, WeightsError
from diptych.models import list_models, model_config
from diptych.weights._native import VERSION

from .test_formats import random_model

FAMILIES = ["tiny-test", "tiny-test-resnet", "tiny-test-siglip", "tiny-test-clipa"]


def test_every_family_of_the_presets_is_saved():
    def families(name):
        config = model_config(name)
        return config.vision.family, config.text.family

    assert {families(name) for name in list_models()} == {families(name) for name in FAMILIES}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("bias", [None, -7.0], ids=["without bias", "with bias"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_is_read_back(name, bias, dtype, tmp_path):
    config = dataclasses.replace(model_config(name), logit_bias=bias, logit_scale=1.25)
    model = random_model(config, dtype)
    weights.save(tmp_path / "a.safetensors", model, {"steps": "3"})
    weights.save_state(tmp_path / "b.safetensors", config, model.state_dict(), notes={"steps": "3"})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    again = weights.load(tmp_path / "a.safetensors", precision="file")
    assert again.config == config
    state = again.state_dict()
    assert set(state) == set(model.state_dict())
    for key, tensor in model.state_dict().items():
        if key in ("image.mean", "image.std"):
            assert torch.allclose(state[key].double(), tensor.double(), atol=1e-2)
        else:
            assert state[key].dtype == tensor.dtype and torch.equal(state[key], tensor), key
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_tied_tensors_are_written_twice(tmp_path):
    model = random_model(model_config("tiny-test"))
    state = model.state_dict()
    state["image.layers.1.ln_1.weight"] = state["image.layers.0.ln_1.weight"]
    state["image.layers.1.attention.q.weight"] = state["image.layers.0.attention.q.weight"].T.contiguous().T
    weights.save_state(tmp_path / "a.safetensors", model.config, state)
    again = weights.load(tmp_path / "a.safetensors").state_dict()
    for key, tensor in state.items():
        assert torch.equal(again[key], tensor), key


def test_views_of_a_fused_tensor_are_written(tmp_path):
    model = random_model(model_config("tiny-test"))
    names = [f"image.layers.0.attention.{letter}.weight" for letter in "qkv"]
    fused = torch.cat([model.state_dict()[name] for name in names])
    state = {**model.state_dict(), **dict(zip(names, fused.chunk(3), strict=True))}
    weights.save_state(tmp_path / "a.safetensors", model.config, state)
    saved = load_file(tmp_path / "a.safetensors")
    assert torch.equal(torch.cat([saved[name] for name in names]), fused)


def adapted(state):
    weight = state.pop("image.layers.0.attention.q.weight")
    return {**state, "image.layers.0.attention.q.base.weight": weight}


def changed(**tensors):
    return lambda state: {**state, **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (adapted, r"unknown: image\.layers\.0\.attention\.q\.base\.weight; missing: .*q\.weight.*[Mm]erge adapters"),
        (changed(logit_bias=torch.zeros(1)), r"unknown: logit_bias\. "),
        (changed(logit_scale=torch.zeros(())), r"logit_scale has shape \[\], expected \[1\]"),
        (changed(logit_scale=torch.zeros(1, dtype=torch.int32)), r"logit_scale is torch\.int32"),
        (changed(logit_scale=torch.zeros(1, device="meta")), "logit_scale is no plain tensor"),
        (changed(image__ln_pre__weight=torch.ones(32).to_sparse()), "ln_pre.weight is no plain tensor"),
        (lambda state: {}, r"missing: image\.class_embedding, .* and \d+ more"),
    ],
)
def test_a_state_that_could_not_be_read_is_refused(change, message, tmp_path):
    model = random_model(model_config("tiny-test"))
    path = tmp_path / "model.safetensors"
    with pytest.raises(WeightsError, match=message) as caught:
        weights.save_state(path, model.config, change(model.state_dict()))
    assert "not written" in caught.value.line and "\n" not in caught.value.line
    assert not list(tmp_path.iterdir())


def test_a_refused_state_leaves_the_old_file(tmp_path):
    model = random_model(model_config("tiny-test"))
    weights.save(tmp_path / "a.safetensors", model)
    before = (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(WeightsError):
        weights.save_state(tmp_path / "a.safetensors", model.config, {})
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"weight file .* could not be written"):
        weights.save(tmp_path / "file" / "a.safetensors", random_model(model_config("tiny-test")))


def test_the_metadata_has_a_version(tmp_path):
    import json

    from safetensors import safe_open

    weights.save(tmp_path / "a.safetensors", random_model(model_config("tiny-test")), {"note": "x"})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        values = json.loads(file.metadata()["diptych"])
    assert values["layout"] == VERSION == 1
    assert (values["tokenizer"], values["notes"]) == ("bpe", {"note": "x"})
