"""Sixteen uses of open_clip that public programs make, written anew, on a small model: they run and give what they should.

No other library is needed. The same programs beside the real open_clip are in ``test_programs`` and ``test_calls``.
"""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diptych import open_clip
from diptych.open_clip import _registry
from tests.open_clip._models import config

NAME = "small-for-uses"
DIM, SIDE, CONTEXT, WIDTH = 64, 64, 77, 48


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of a small model that knows CLIP's vocabulary, and its architecture under ``NAME``."""
    folder = tmp_path_factory.mktemp("uses")
    values = config((), {"vocab_size": 49408, "context_length": CONTEXT})
    (folder / f"{NAME}.json").write_text(json.dumps(values))
    before = dict(_registry._added)
    open_clip.add_model_config(folder / f"{NAME}.json")
    torch.manual_seed(0)
    save_file(dict(open_clip.CLIP(**values).state_dict()), folder / "w.safetensors")
    yield str(folder / "w.safetensors")
    _registry._added.clear()
    _registry._added.update(before)


@pytest.fixture
def loaded(file):
    """Model, evaluation transform, tokenizer."""
    model, _, preprocess = open_clip.create_model_and_transforms(NAME, pretrained=file)
    return model.eval(), preprocess, open_clip.get_tokenizer(NAME)


def picture(width=300, height=200):
    values = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    return Image.fromarray(values)


def finite(tensor, *shape):
    assert tuple(tensor.shape) == shape and bool(torch.isfinite(tensor.float()).all())


def test_readme(loaded):
    model, preprocess, tokenizer = loaded
    image, text = model.encode_image(preprocess(picture())[None]), model.encode_text(tokenizer(["a diagram", "a dog"]))
    image /= image.norm(dim=-1, keepdim=True)
    text /= text.norm(dim=-1, keepdim=True)
    probabilities = (100.0 * image @ text.T).softmax(dim=-1)
    finite(probabilities, 1, 2)
    assert probabilities.sum().item() == pytest.approx(1)


def test_arrays_become_logits(file):
    model, _, preprocess = open_clip.create_model_and_transforms(NAME, pretrained=file, device=torch.device("cpu"))
    batch = torch.stack([preprocess(Image.fromarray(np.asarray(picture(width)))) for width in (300, 120)])
    logits = (
        model.logit_scale.exp()
        * model.eval().encode_image(batch)
        @ model.encode_text(open_clip.tokenize(["a dog"])).t()
    )
    finite(logits, 2, 1)


def test_numpy_chunks_of_phrases(loaded):
    model, _, tokenizer = loaded
    parts = [model.encode_text(tokenizer(part)) for part in np.array_split(["a cat", "a dog", "a bird"], 2)]
    finite(torch.cat(parts).half(), 3, DIM)
    assert torch.cat(parts).half().numpy().dtype == np.float16
    assert tokenizer(["x"])[0][-1] == 0


def test_a_cache_folder_may_be_none(file):
    model, _, _ = open_clip.create_model_and_transforms(NAME, pretrained=file, cache_dir=None)
    assert model.to("cpu") is model and model.training


def test_the_list_of_weights_is_a_dictionary(file, tmp_path):
    assert dict(open_clip.list_pretrained())["ViT-B-32"] in open_clip.list_pretrained_tags_by_model("ViT-B-32")
    made = open_clip.create_model_and_transforms(
        NAME, pretrained=file, device="cpu", jit=False, cache_dir=str(tmp_path)
    )
    assert len(made) == 3


def test_a_transform_from_the_tower(file):
    model = open_clip.create_model(NAME, pretrained=file)
    finite(open_clip.image_transform(model.visual.image_size, is_train=False)(picture()), 3, SIDE, SIDE)


def test_weights_are_loaded_afterwards(file):
    model = open_clip.create_model(NAME)
    keys = open_clip.load_checkpoint(model, file)
    assert not keys.missing_keys and not keys.unexpected_keys
    tower = model.visual
    transform = open_clip.image_transform(tower.image_size, is_train=False, mean=tower.image_mean, std=tower.image_std)
    same = open_clip.create_model(NAME, pretrained=file).eval()
    given = transform(picture())[None]
    assert all(torch.equal(item, same.state_dict()[name]) for name, item in model.state_dict().items())
    torch.testing.assert_close(model.eval().encode_image(given), same.encode_image(given), rtol=0, atol=2e-6)


def test_penultimate_states_of_a_diffusion_model(loaded):
    model, _, _ = loaded
    del model.visual
    tokens = open_clip.tokenize(["a dog"])
    x = model.token_embedding(tokens) + model.positional_embedding
    for block in model.transformer.resblocks[:-1]:
        x = block(x, attn_mask=model.attn_mask)
    finite(model.ln_final(x), 1, CONTEXT, WIDTH)
    pooled = model.ln_final(model.transformer.resblocks[-1](x, attn_mask=model.attn_mask))
    whole = pooled[torch.arange(1), tokens.argmax(dim=-1)] @ model.text_projection
    torch.testing.assert_close(whole, model.encode_text(tokens), rtol=0, atol=1e-5)


def test_image_tokens_without_texts(loaded):
    model, _, _ = loaded
    del model.transformer
    model.visual.output_tokens = True
    pooled, tokens = model.visual(torch.randn(2, 3, SIDE, SIDE))
    finite(pooled, 2, DIM)
    finite(tokens, 2, 16, 64)


def test_last_hidden_state(loaded):
    tower = loaded[0].visual
    tower.output_tokens, tower.attn_pool, tower.proj = True, None, None
    pooled, tokens = tower(torch.randn(1, 3, SIDE, SIDE))
    finite(pooled, 1, 64)
    finite(tokens, 1, 16, 64)


def test_the_image_tower_alone(file):
    model, preprocess = open_clip.create_model_from_pretrained(NAME, pretrained=file)
    given = preprocess(picture())[None]
    model.eval()
    assert torch.equal(model.visual(given), model.encode_image(given))


def test_the_last_transform_normalizes(loaded):
    image = torch.rand(3, SIDE, SIDE)
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    torch.testing.assert_close(loaded[1].transforms[-1](image), (image - mean) / std)


def test_a_classifier(loaded):
    model, _, tokenizer = loaded
    names, templates = open_clip.IMAGENET_CLASSNAMES[:3], open_clip.OPENAI_IMAGENET_TEMPLATES[:2]
    classifier = open_clip.build_zero_shot_classifier(
        model, tokenizer, classnames=names, templates=templates, device="cpu"
    )
    finite(classifier, DIM, 3)
    torch.testing.assert_close(classifier.norm(dim=0), torch.ones(3))


def test_a_dictionary_of_outputs(file):
    model, _, preprocess = open_clip.create_model_and_transforms(NAME, pretrained=file, output_dict=True)
    output = model(image=preprocess(picture())[None], text=open_clip.get_tokenizer(NAME)(["a"]))
    assert list(output) == ["image_features", "text_features", "logit_scale"]
    assert output["logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-4)


def test_fine_tuning(file):
    model, augment, _ = open_clip.create_model_and_transforms(
        NAME, pretrained=file, precision="amp", force_quick_gelu=False, aug_cfg={"scale": (0.5, 1.0)}
    )
    model.lock_image_tower(unlocked_groups=0)
    model.set_grad_checkpointing()
    batch = torch.stack([augment(picture()), augment(picture(120))])
    with torch.enable_grad():
        open_clip.ClipLoss()(*model(batch, open_clip.get_tokenizer(NAME)(["a", "b"]))).backward()
    assert all(parameter.grad is None for parameter in model.visual.parameters())
    assert all(bool(torch.isfinite(p.grad).all()) and p.grad.any() for p in model.transformer.parameters())


@pytest.mark.filterwarnings("ignore")
def test_onnx_of_the_image_tower(loaded):
    pytest.importorskip("onnx", reason="torch's exporter needs the package onnx")
    written = io.BytesIO()
    torch.onnx.export(loaded[0].visual, torch.randn(1, 3, SIDE, SIDE), written, opset_version=17, dynamo=False)
    assert len(written.getvalue()) > 100_000
