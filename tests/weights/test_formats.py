"""Every checkpoint format, both ways: writing then reading is the identity; files of other systems are understood."""

import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch

from diptych import weights
from diptych.errors import WeightsError
from diptych.models import create_model, model_config
from diptych.weights import CHECKPOINT_FORMATS, convert
from diptych.weights._clip_names import NamingScheme, clip_rules
from diptych.weights._rename import to_theirs


def small(**changes):
    """A CLIP of odd sizes, so that no two axes are alike; heads 64 wide, as tensors alone would give."""
    base = model_config("ViT-B-32-quickgelu")
    vision = dataclasses.replace(base.vision, image_size=48, patch_size=16, width=192, layers=2, heads=3, mlp_ratio=3.0)
    text = dataclasses.replace(base.text, width=128, layers=3, heads=2)
    return dataclasses.replace(base, **{"name": "small", "embed_dim": 40, "vision": vision, "text": text, **changes})


def declip_shaped():
    from diptych.weights.declip import PREPROCESS

    text = dataclasses.replace(small().text, vocab_size=49409, projection_bias=True)
    return small(text=text, vision=dataclasses.replace(small().vision, norm_tokens=False), preprocess=PREPROCESS)


def resnet():
    vision = dataclasses.replace(model_config("tiny-test-resnet").vision, image_size=64, width=16, heads=8)
    return small(vision=vision)


def timm_siglip():
    """The smallest that open_clip has by timm's name, with few layers: sizes are timm's."""
    base = model_config("ViT-B-16-SigLIP")
    vision = dataclasses.replace(base.vision)
    text = dataclasses.replace(base.text, width=64, layers=2, heads=2, vocab_size=300, context_length=16)
    return dataclasses.replace(base, vision=vision, text=text, activation="gelu")


def random_model(config, dtype=torch.float32):
    torch.manual_seed(0)
    model = create_model(config)
    with torch.no_grad():
        for name, item in model.named_parameters():
            if "logit" not in name:
                item.copy_(torch.randn(item.shape) * 0.05 + (1.0 if item.ndim == 1 and "weight" in name else 0.0))
    return model.to(dtype).eval()


SHAPES = {
    "openai": [small, resnet],
    "openclip": [small, resnet, timm_siglip, lambda: small(activation="gelu"), lambda: model_config("tiny-test-clipa")],
    "huggingface": [small, lambda: small(activation="gelu")],
    "paddle": [small],
    "declip": [declip_shaped],
}


def test_every_format_is_tested():
    assert set(SHAPES) == set(CHECKPOINT_FORMATS.names())


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("checkpoint_format", "make"), [(name, make) for name, makers in SHAPES.items() for make in makers]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_writing_and_reading_is_the_identity(checkpoint_format, make, dtype, tmp_path):
    model = random_model(make(), dtype)
    weights.save(tmp_path / "a.safetensors", model)
    _, proof = convert(tmp_path / "a.safetensors", checkpoint_format, tmp_path / "new")
    assert max(proof.image_difference, proof.text_difference) < 1e-6
    again = weights.load(tmp_path / "new", precision="file")
    for key, item in model.state_dict().items():
        if key not in ("image.mean", "image.std"):
            assert torch.equal(item, again.state_dict()[key]), key
            assert item.dtype == again.state_dict()[key].dtype, key
    described = dataclasses.replace(again.config, name="", logit_scale=0.0)
    assert described == dataclasses.replace(model.config, name="", logit_scale=0.0)


def test_clipas_tensors_show_what_they_are_and_other_formats_refuse_them(tmp_path):
    model = random_model(model_config("tiny-test-clipa"))
    state = to_theirs(clip_rules(model.config, NamingScheme()), model.state_dict())
    assert not any("ln_pre" in name for name in state)
    torch.save(state, tmp_path / "pytorch_model.bin")  # no config beside it
    again = weights.load(tmp_path / "pytorch_model.bin", model="tiny-test-clipa")
    assert again.config.text.family == "siglip_text" and again.config.vision.pool == "patches"
    weights.save(tmp_path / "a.safetensors", model)
    for checkpoint_format in ("huggingface", "openai", "paddle", "declip"):
        with pytest.raises(WeightsError, match=r"openclip") as caught:
            convert(tmp_path / "a.safetensors", checkpoint_format, tmp_path / checkpoint_format)
        assert "\n" not in caught.value.line and not (tmp_path / checkpoint_format / "model.safetensors").exists()


def test_names_are_openais_to_the_letter():
    """The names of the published archives, from SOURCES.md and the papers' code, for one block of each tower."""
    names = {rule.theirs for rule in clip_rules(model_config("ViT-B-32"), NamingScheme())}
    assert {
        "visual.class_embedding", "visual.positional_embedding", "visual.proj", "visual.conv1.weight", "visual.ln_pre.bias",
        "visual.transformer.resblocks.11.attn.in_proj_weight", "visual.transformer.resblocks.0.mlp.c_fc.bias",
        "transformer.resblocks.0.attn.out_proj.weight", "transformer.resblocks.0.ln_2.weight", "ln_final.weight",
        "token_embedding.weight", "text_projection", "positional_embedding", "logit_scale",
    } <= names  # fmt: skip
    assert len(names) == 302  # what OpenAI's ViT-B/32 holds, without its three numbers
    names = {rule.theirs for rule in clip_rules(model_config("RN50"), NamingScheme())}
    assert {
        "visual.layer4.2.bn3.running_var",
        "visual.layer1.0.downsample.0.weight",
        "visual.attnpool.c_proj.bias",
    } <= names


@pytest.mark.parametrize("wrapper", ["plain", "module", "checkpoint", "compiled"])
def test_state_dicts_come_in_wrappers(wrapper, tmp_path):
    model = random_model(model_config("ViT-Mini-8-64"))
    state = to_theirs(clip_rules(model.config, NamingScheme()), model.state_dict())
    if wrapper == "module":
        state = {f"module.{key}": item for key, item in state.items()}
    if wrapper == "compiled":
        state = {f"module._orig_mod.{key}": item for key, item in state.items()}
    if wrapper == "checkpoint":
        state = {"epoch": 7, "name": "run", "state_dict": {f"module.{key}": item for key, item in state.items()}}
        state["optimizer"] = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
    path = tmp_path / "epoch_7.pt"
    torch.save(state, path)
    with pytest.raises(WeightsError, match="GELU or QuickGELU"):
        weights.load(path)
    again = weights.load(path, model="ViT-Mini-8-64")
    for key, item in model.state_dict().items():
        assert torch.equal(item, again.state_dict()[key]), key


def test_a_custom_text_tower_is_read_under_text(tmp_path):
    model = random_model(model_config("ViT-Mini-8-64"))
    state = to_theirs(clip_rules(model.config, NamingScheme(text="text.")), model.state_dict())
    torch.save(state, tmp_path / "a.bin")
    again = weights.load(tmp_path / "a.bin", model="ViT-Mini-8-64")
    assert torch.equal(again.text.projection.weight, model.text.projection.weight)


# torch deprecates the archives that OpenAI published; writing one for this test is the only use.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_an_archive_of_openai_is_read_without_running_it(tmp_path):
    model = random_model(small(), torch.float16)
    state = to_theirs(clip_rules(model.config, NamingScheme()), model.state_dict())

    class Holder(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    root = Holder()
    for name, tensor in state.items():
        parent = root
        *way, leaf = name.split(".")
        for step in way:
            if step not in parent._modules:
                parent.add_module(step, Holder())
            parent = parent._modules[step]
        parent.register_parameter(leaf, torch.nn.Parameter(tensor.clone(), requires_grad=False))
    for name, value in (("input_resolution", 48), ("context_length", 77), ("vocab_size", 49408)):
        root.register_buffer(name, torch.tensor(value))
    path = tmp_path / "ViT.pt"
    torch.jit.script(root).save(str(path))
    again = weights.load(path)
    assert again.config.activation == "quickgelu"
    assert next(again.parameters()).dtype == torch.float32
    for key, item in model.named_parameters():
        assert torch.equal(item.float(), again.state_dict()[key]), key


def test_paddles_linears_are_in_out_and_apart(tmp_path):
    """Written as PaddleMIX writes them, by numpy alone; square matrices, where a wrong transpose has the right shape."""
    model = random_model(small())
    state = to_theirs(clip_rules(model.config, NamingScheme()), model.state_dict())
    arrays = {}
    for name, tensor in state.items():
        value = tensor.numpy()
        if name.endswith(("in_proj_weight", "in_proj_bias")):
            stem, leaf = name.split("in_proj_")
            for letter, part in zip("qkv", np.split(value, 3), strict=True):
                arrays[f"{stem}{letter}_proj.{leaf}"] = part.T.copy() if leaf == "weight" else part
        elif name.endswith(("out_proj.weight", "c_fc.weight", "c_proj.weight")):
            arrays[name] = value.T.copy()
        else:
            arrays[name] = value.reshape(1) if name == "logit_scale" else value
    arrays["StructuredToParameterName@@"] = {name: name for name in arrays}
    values = {
        "model_type": "clip", "embed_dim": 40, "fusedlinear": False,
        "vision_cfg": {"image_size": 48, "patch_size": 16, "width": 192, "layers": 2, "head_width": 64, "mlp_ratio": 3.0},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "layers": 3, "heads": 2, "quick_gelu": True},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    for protocol in (2, 4):
        with (tmp_path / "model_state.pdparams").open("wb") as file:
            pickle.dump(arrays, file, protocol=protocol)
        again = weights.load(tmp_path)
        for key, item in model.state_dict().items():
            assert torch.equal(item, again.state_dict()[key]), (protocol, key)
        assert again.config.activation == "quickgelu"


def test_paddles_large_tensors_come_in_slices(tmp_path):
    from diptych.tensorfiles._pickled_arrays import read_pdparams

    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    flat = whole.ravel()
    arrays = {"w@@.0": flat[:10], "w@@.1": flat[10:], "b": np.ones(3, dtype=np.uint16)}
    arrays["UnpackBigParamInfor@@"] = {"w": {"OriginShape": (4, 6), "slices": ["w@@.0", "w@@.1"]}}
    with (tmp_path / "a.pdparams").open("wb") as file:
        pickle.dump(arrays, file, protocol=2)
    tensors = read_pdparams(tmp_path / "a.pdparams")
    assert np.array_equal(tensors["w"].numpy(), whole)
    assert tensors["b"].dtype == torch.bfloat16
    assert tensors["b"].view(torch.int16).tolist() == [1, 1, 1]


def test_declips_mask_token_moves_behind_the_end(tmp_path):
    model = random_model(declip_shaped())
    weights.save(tmp_path / "a.safetensors", model)
    path, _ = convert(tmp_path / "a.safetensors", "declip", tmp_path / "new")
    theirs = torch.load(path, weights_only=True)["model"]["module.encode_text.token_embedding.weight"]
    ours = model.text.token_embedding.weight
    assert torch.equal(theirs[49406], ours[49408])  # mask
    assert torch.equal(theirs[49407], ours[49406])  # start
    assert torch.equal(theirs[49408], ours[49407])  # end
    assert torch.equal(theirs[:49406], ours[:49406])


def test_declips_other_heads_are_left_out_and_slips_names_known(tmp_path):
    model = random_model(declip_shaped())
    rules = CHECKPOINT_FORMATS.get("declip")().rules(model.config)
    state = {
        rule.replace("encode_text.", "text_encoder."): item
        for rule, item in to_theirs(rules, model.state_dict()).items()
    }
    state |= {
        "projector.0.weight": torch.zeros(3),
        "predictor_sim.bias": torch.zeros(1),
        "logit_scale_dense": torch.ones(1),
    }
    torch.save({"model": state, "last_iter": 9, "optimizer": {}}, tmp_path / "ckpt.pth.tar")
    again = weights.load(tmp_path)
    assert torch.equal(again.text.projection.bias, model.text.projection.bias)
    assert again.config.preprocess.resize_to == 256
    torch.save({"model": state | {"visual.strange": torch.zeros(1)}}, tmp_path / "ckpt.pth.tar")
    with pytest.raises(WeightsError, match=r"left over: visual\.strange"):
        weights.load(tmp_path)
    assert weights.load(tmp_path, allow=["visual.strange"]).config.activation == "quickgelu"


def test_openais_format_refuses_what_it_cannot_express(tmp_path):
    weights.save(tmp_path / "a.safetensors", random_model(small(activation="gelu")))
    with pytest.raises(WeightsError, match="always means quickgelu"):
        convert(tmp_path / "a.safetensors", "openai", tmp_path / "new")
    with pytest.raises(WeightsError, match="not DeCLIP-shaped"):
        convert(tmp_path / "a.safetensors", "declip", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
