"""Creating models from names, files, folders: which weights, which activation, which preprocessing, and every refusal's line."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import diptych
from diptych import open_clip
from diptych.errors import ConfigError, DiptychError, WeightsError
from diptych.models import create_model as native_model

NAME = "tiny-test"


@pytest.fixture
def weights(tmp_path):
    """A native file of ``NAME``, and the state dict of the same model by open_clip's names."""
    torch.manual_seed(0)
    model = native_model(NAME)
    path = tmp_path / "native.safetensors"
    diptych.save(path, model)
    return path, dict(open_clip.create_model(NAME, pretrained=str(path)).state_dict()), model


def features(model, size=32):
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    ids = open_clip.tokenize(["a dog", "a small cat on a mat"])
    model.eval()
    with torch.no_grad():
        return torch.cat([model.encode_image(images), model.encode_text(ids)])


def test_a_native_file_gives_the_library_features(weights):
    path, _, model = weights
    torch.testing.assert_close(features(open_clip.create_model(NAME, str(path))), features(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "checkpoint", "custom", "half"])
def test_files_of_open_clip_load_exactly(weights, tmp_path, kind):
    _, state, _ = weights
    path = tmp_path / f"{kind}.pt"
    if kind == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file(state, path)
    elif kind == "checkpoint":
        torch.save({"epoch": 3, "name": "run", "state_dict": {f"module.{n}": t for n, t in state.items()}}, path)
    elif kind == "custom":
        torch.save(open_clip.model.convert_to_custom_text_state_dict(state), path)
    else:
        torch.save({n: t.half() if kind == "half" else t for n, t in state.items()}, path)
    model = open_clip.create_model(NAME, pretrained=path)
    expected = {name: tensor.half().float() if kind == "half" else tensor for name, tensor in state.items()}
    assert all(torch.equal(item, expected[name]) for name, item in model.state_dict().items())
    assert all(item.dtype == torch.float32 for item in model.parameters())


def test_custom_text_takes_both_layouts(weights, tmp_path):
    path, state, _ = weights
    model = open_clip.create_model(NAME, pretrained=str(path), force_custom_text=True)
    assert isinstance(model, open_clip.CustomTextCLIP)
    torch.testing.assert_close(features(model), features(open_clip.create_model(NAME, str(path))), rtol=0, atol=1e-6)
    assert set(model.state_dict()) == set(open_clip.model.convert_to_custom_text_state_dict(state))


def test_models_are_made_for_training():
    model = open_clip.create_model(NAME)
    assert model.training and isinstance(model, open_clip.CLIP)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_loaded_models_can_be_trained(weights):
    model = open_clip.create_model(NAME, str(weights[0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = features(model)
    images, texts, scale = model.train()(torch.randn(2, 3, 32, 32), open_clip.tokenize(["a", "b c"]))
    open_clip.ClipLoss()(images, texts, scale).backward()
    optimizer.step()
    assert not torch.allclose(before, features(model))


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_model_does_not_depend_on_its_file(weights, tmp_path, name):
    _, state, _ = weights
    path, write = tmp_path / name, save_file if name.endswith("safetensors") else torch.save
    write(state, path)
    model, tensors = open_clip.create_model(NAME, pretrained=str(path)), open_clip.load_state_dict(str(path))
    path.write_bytes(b"x" * path.stat().st_size)  # in place, as torch.save does
    for loaded in (model.state_dict(), tensors):
        assert all(torch.equal(item, loaded[name]) for name, item in state.items())
    write(model.state_dict(), path)
    assert all(torch.equal(item, open_clip.load_state_dict(path)[name]) for name, item in state.items())


def test_random_weights_are_said(capsys):
    open_clip.create_model(NAME)
    assert "random" in capsys.readouterr().err


def test_arguments_change_the_model(weights):
    path = str(weights[0])
    model = open_clip.create_model(
        NAME, path, force_image_size=64, force_context_length=20, force_patch_dropout=0.5, output_dict=True,
        init_logit_bias=-10.0, force_quick_gelu=False,
    )  # fmt: skip
    assert model.visual.image_size == (64, 64) and model.visual.grid_size == (4, 4)
    assert model.context_length == 20 and model.positional_embedding.shape[0] == 20
    assert model.visual.patch_dropout.prob == 0.5 and model.output_dict
    assert model.logit_bias.item() == 0.0  # the weights have none
    assert open_clip.create_model(NAME, init_logit_scale=math.log(5)).logit_scale.exp().item() == pytest.approx(5)


@pytest.mark.parametrize(
    ("precision", "linear", "norm"),
    [("fp32", torch.float32, torch.float32), ("bf16", torch.bfloat16, torch.float32),
     ("pure_fp16", torch.float16, torch.float16), ("amp", torch.float32, torch.float32)],
)  # fmt: skip
def test_precision_casts(weights, precision, linear, norm):
    model = open_clip.create_model(NAME, str(weights[0]), precision=precision)
    assert model.visual.transformer.resblocks[0].mlp.c_fc.weight.dtype == linear
    assert model.visual.ln_post.weight.dtype == norm
    dtype = open_clip.get_input_dtype(precision) or torch.float32
    with torch.no_grad():
        assert torch.isfinite(model.encode_image(torch.randn(1, 3, 32, 32, dtype=dtype)).float()).all()
        assert torch.isfinite(model.encode_text(open_clip.tokenize("a dog")).float()).all()


def test_weights_decide_about_their_activation(tmp_path):
    config = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
    }
    (tmp_path / "heads-of-64.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    numbers = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    state = open_clip.create_model("heads-of-64").state_dict()
    archive = tmp_path / "own-openai.pt"
    torch.save({**state, **{name: torch.tensor(value) for name, value in numbers.items()}}, archive)
    with pytest.warns(UserWarning, match="QuickGELU mismatch"):
        model = open_clip.create_model("heads-of-64", str(archive))
    assert isinstance(model.visual.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
    quick = open_clip.load_openai_model(str(archive), device="cpu")
    torch.testing.assert_close(features(quick), features(model), rtol=0, atol=1e-6)
    assert not quick.training


def test_an_asked_quick_gelu_against_the_weights_is_an_error(weights):
    with pytest.raises(RuntimeError, match="QuickGELU"):
        open_clip.create_model(NAME, str(weights[0]), force_quick_gelu=True)


def test_weights_decide_about_their_preprocessing(tmp_path):
    path = tmp_path / "clipa.safetensors"
    diptych.save(path, native_model("tiny-test-clipa"))
    model, _, preprocess = open_clip.create_model_and_transforms("tiny-test-clipa", str(path))
    assert model.visual.preprocess_cfg["resize_mode"] == "squash"
    assert tuple(preprocess.transforms[-1].mean) == open_clip.constants.IMAGENET_MEAN
    forced = open_clip.create_model_and_transforms("tiny-test-clipa", str(path), image_mean=(0.1, 0.2, 0.3))[2]
    assert tuple(forced.transforms[-1].mean) == (0.1, 0.2, 0.3)


def test_a_local_folder_brings_config_and_weights(weights, tmp_path):
    _, state, _ = weights
    folder = tmp_path / "folder"
    folder.mkdir()
    config = {"model_cfg": open_clip.get_model_config(NAME), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(state, folder / "open_clip_model.safetensors")
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    assert torch.equal(model.visual.conv1.weight, state["visual.conv1.weight"])
    assert tuple(preprocess.transforms[-1].mean) == (0.5, 0.5, 0.5)
    assert open_clip.get_tokenizer(f"local-dir:{folder}")(["a"]).shape == (1, 77)


def test_an_added_config_is_a_model(tmp_path):
    config = open_clip.get_model_config(NAME)
    config["vision_cfg"]["qk_norm"] = True  # which no preset has
    (tmp_path / "my-own.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "my-own.json")
    assert "my-own" in open_clip.list_models()
    assert open_clip.create_model("my-own").visual.transformer.resblocks[0].attn.ln_q.normalized_shape == (16,)


REFUSALS = [
    ({"model_name": "coca_ViT-B-32"}, RuntimeError, "CoCa"),
    ({"model_name": "convnext_base"}, RuntimeError, "timm"),
    ({"model_name": "ViT-B-16-SigLIP"}, RuntimeError, "create_model_and_transforms"),
    ({"model_name": "roberta-ViT-B-32"}, RuntimeError, "transformers"),
    ({"model_name": "ViT-B32"}, RuntimeError, "Did you mean"),
    ({"model_name": NAME, "pretrained": "no-such-tag"}, RuntimeError, "no such weight file"),
    ({"model_name": NAME, "require_pretrained": True}, RuntimeError, "required"),
    ({"model_name": NAME, "precision": "fp8"}, RuntimeError, "unknown precision"),
    ({"model_name": NAME, "pretrained_image": True}, ConfigError, "timm"),
    ({"model_name": NAME, "pretrained_text_path": "x.pt"}, RuntimeError, "force_custom_text"),
    ({"model_name": "local-dir:"}, ValueError, "folder"),
    ({"model_name": "local-dir:nowhere"}, FileNotFoundError, "no such folder"),
    ({"model_name": NAME, "device": "nothing"}, DiptychError, "nothing"),
]


@pytest.mark.parametrize(("arguments", "kind", "line"), REFUSALS, ids=[str(i) for i in range(len(REFUSALS))])
def test_what_cannot_be_is_one_line(arguments, kind, line):
    with pytest.raises(kind, match=line) as caught:
        open_clip.create_model(**arguments)
    assert isinstance(caught.value, DiptychError) and "\n" not in str(caught.value)


def test_weights_of_another_shape_are_one_line(weights):
    with pytest.raises(DiptychError, match=r"another shape|architecture") as caught:
        open_clip.create_model("ViT-Mini-8-64", str(weights[0]))
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_one_line(tmp_path):
    (tmp_path / "page.pt").write_text("<html>not found</html>")
    with pytest.raises(WeightsError):
        open_clip.create_model(NAME, str(tmp_path / "page.pt"))


def test_positions_are_resized_as_open_clip_does(peer, weights, tmp_path):
    _, state, _ = weights
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    config = open_clip.get_model_config(NAME)
    (tmp_path / "peer-tiny.json").write_text(json.dumps(config))
    peer.add_model_config(tmp_path / "peer-tiny.json")
    options = {"force_image_size": 80, "force_context_length": 20}
    theirs = peer.create_model("peer-tiny", str(path), **options).state_dict()
    ours = open_clip.create_model(NAME, str(path), **options).state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_lists_are_subsets_of_open_clips_with_equal_configs(peer):
    own = {"emoji-64", "flickr-small", "ViT-Mini-8-64"}
    ours = [
        name for name in open_clip.list_models() if not name.startswith(("tiny-test", "my-own")) and name not in own
    ]
    assert [name for name in peer.list_models() if name in ours] == ours
    assert all(open_clip.get_model_config(name) == peer.get_model_config(name) for name in ours)
    assert set(open_clip.list_pretrained()) <= set(peer.list_pretrained())
    for model, tag in open_clip.list_pretrained():
        theirs, mine = peer.get_pretrained_cfg(model, tag), open_clip.get_pretrained_cfg(model, tag)
        same = {"mean", "std", "interpolation", "resize_mode", "quick_gelu"}
        assert {n: tuple(v) if isinstance(v, list) else v for n, v in theirs.items() if n in same} == {
            n: v for n, v in mine.items() if n in same
        }


def test_unknown_names_of_the_library_say_where_open_clips_are():
    with pytest.raises(AttributeError, match="from diptych import open_clip"):
        _ = diptych.tokenize
    with pytest.raises(AttributeError, match="from diptych import open_clip"):
        _ = diptych.openai
