"""What is saved is loaded, with everything needed to use it; what is damaged is refused in one line."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import diptych
from diptych import weights
from diptych.errors import ConfigError, WeightsError
from diptych.models import create_model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("tiny-test").eval()


@pytest.fixture
def path(model, tmp_path):
    weights.save(tmp_path / "model.safetensors", model, {"note": "x"})
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("name", ["tiny-test", "tiny-test-resnet"])
def test_saving_and_loading_is_the_identity(name, tmp_path):
    model = create_model(name).eval()
    weights.save(tmp_path / "model.safetensors", model)
    again = weights.load(tmp_path)
    assert again.config == model.config
    assert not again.training
    for key, item in model.state_dict().items():
        assert torch.equal(item, again.state_dict()[key]), key
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.allclose(model.encode_image(images), again.encode_image(images), atol=1e-6)
    assert all(item.requires_grad for item in again.parameters())


def test_the_metadata_says_architecture_activation_and_preprocessing(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        values = json.loads(file.metadata()["diptych"])
    assert values["config"]["activation"] == "gelu"
    assert values["config"]["preprocess"]["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert values["config"]["vision"]["patch_size"] == 16
    assert values["notes"] == {"note": "x"}


def refused(path, expected):
    with pytest.raises(WeightsError, match=expected) as caught:
        weights.load(path)
    assert "\n" not in caught.value.line


def test_damaged_files_are_one_line(path, tmp_path):
    data = path.read_bytes()
    path.write_bytes(b"")
    refused(path, "the file is empty")
    for size in (4, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        refused(path, "not a whole safetensors file")
    path.write_bytes(b"\xff" * 8 + data[8:])  # a header of 2^64 bytes
    refused(path, "not a whole safetensors file")
    path.write_bytes(pickle.dumps({"weights": 1}))
    refused(path, "not a whole safetensors file")
    refused(tmp_path / "none", "no such weight file")
    (tmp_path / "void").mkdir()
    refused(tmp_path / "void", "no model.safetensors in this folder")


def test_files_that_do_not_fit_say_what_is_wrong(path, tmp_path):
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "does not say its architecture")
    scale = tensors.pop("logit_scale")
    save_file(tensors, tmp_path / "b.safetensors", metadata)
    refused(tmp_path / "b.safetensors", "missing: logit_scale")
    save_file(tensors | {"logit_scale": scale, "more": torch.zeros(1)}, tmp_path / "c.safetensors", metadata)
    refused(tmp_path / "c.safetensors", "left over: more")
    save_file(tensors | {"logit_scale": torch.ones(2)}, tmp_path / "d.safetensors", metadata)
    refused(tmp_path / "d.safetensors", r"logit_scale has shape \[2\], expected \[1\]")
    values = json.loads(metadata["diptych"])
    for number, change in enumerate(({"layout": 99}, {"config": {"name": "x"}}, {"config": 3})):
        save_file(
            tensors | {"logit_scale": scale},
            tmp_path / f"e{number}.safetensors",
            {"diptych": json.dumps(values | change)},
        )
        refused(tmp_path / f"e{number}.safetensors", "update Diptych|vision|expected a table")
    save_file(tensors, tmp_path / "f.safetensors", {"diptych": "{"})
    refused(tmp_path / "f.safetensors", "metadata is damaged")


def test_pretrained_weights_of_another_architecture_are_refused(path):
    with pytest.raises(WeightsError, match="use --model tiny-test"):
        weights.create("tiny-test-resnet", str(path))
    assert weights.create("tiny-test", str(path)).training


@pytest.mark.heavy
def test_open_clips_snippet_works_with_diptych_imported_instead(path, tmp_path):
    """The inference example of the open_clip quick start, word for word but for the import and the paths."""
    Image.new("RGB", (50, 40), (200, 30, 30)).save(tmp_path / "image.jpg")
    code = f"""
import torch
from PIL import Image
import diptych as clip

model, _, preprocess = clip.create_model_and_transforms('tiny-test', pretrained={str(path)!r})
tokenizer = clip.get_tokenizer('tiny-test')
image = preprocess(Image.open({str(tmp_path / "image.jpg")!r})).unsqueeze(0).to("cpu")
text = tokenizer(["a diagram", "a dog", "a cat"]).to("cpu")
model = model.to("cpu")
with torch.no_grad(), torch.autocast("cpu"):
    image_features = model.encode_image(image)
    text_features = model.encode_text(text)
    image_features /= image_features.norm(dim=-1, keepdim=True)
    text_features /= text_features.norm(dim=-1, keepdim=True)
    text_probs = (100.0 * image_features @ text_features.T).softmax(dim=-1)
print("Label probs:", text_probs.sum().item())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Label probs:")
    assert float(result.stdout.split(":")[1]) == pytest.approx(1.0, abs=0.02)


def test_preprocessing_gives_uint8_squares_and_training_crops_follow_torchs_seed():
    _, train, evaluate = diptych.create_model_and_transforms("tiny-test")
    image = Image.effect_noise((60, 60), 80)
    pixels = evaluate(image)
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), torch.uint8)
    torch.manual_seed(1)
    crop = train(image)
    torch.manual_seed(1)
    assert torch.equal(crop, train(image))
    assert not torch.equal(crop, train(image))


def test_the_tokenizer_of_a_model_has_its_context_length():
    assert diptych.get_tokenizer("emoji-64").context_length == 32
    assert diptych.get_tokenizer("ViT-B-32")(["a dog"]).shape == (1, 77)
    with pytest.raises(ConfigError, match="Did you mean"):
        diptych.get_tokenizer("ViT-B-33")
