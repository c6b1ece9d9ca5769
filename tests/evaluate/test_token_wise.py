"""Zero-shot by tokens: both rules against NumPy, the file of the maps, and a run of ``filip`` from the shell to its scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from diptych.commands import main
from diptych.data import open_source
from diptych.devices import get_device
from diptych.errors import ConfigError, WeightsError
from diptych.evaluate import Encoder, write_token_maps
from diptych.evaluate._token_maps import read_token_maps
from diptych.evaluate._token_wise import ClassTokens, token_encoder, token_scores
from diptych.evaluate.zeroshot import Zeroshot, ZeroshotOptions
from diptych.image import EvalTransform
from diptych.models import create_model
from diptych.text import get_tokenizer
from tests.evaluate.colors import COLORS, png

TEMPLATES = ("a photo of a {}.", "{}")
WIDTH = 5


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    model = create_model("tiny-test").eval()
    tokenizer = get_tokenizer("bpe", model.config.text.context_length)
    return Encoder(model, tokenizer, EvalTransform(model.config.vision.image_size), get_device("cpu"), batch_size=3)


@pytest.fixture
def maps(encoder, tmp_path):
    draw = torch.Generator().manual_seed(1)
    widths = {"image": encoder.model.config.vision.width, "text": encoder.model.config.text.width}
    tensors = {f"{side}.weight": torch.randn(WIDTH, width, generator=draw) for side, width in widths.items()}
    tensors |= {f"{side}.bias": torch.randn(WIDTH, generator=draw) for side in widths}
    write_token_maps(tmp_path / "token_maps.safetensors", tensors, encoder.model.state_dict())
    return tensors


@pytest.fixture
def folders(tmp_path):
    for name in COLORS:
        (tmp_path / "images" / name).mkdir(parents=True)
        for size in (8, 20):
            (tmp_path / "images" / name / f"{size}.png").write_bytes(png(name))
    return tmp_path / "images"


def reference(encoder, maps, images, names, rule):
    """Scores [N, C] in float64, with loops over images, classes, tokens and words."""
    model = encoder.model
    numbers = {name: item.double().numpy() for name, item in maps.items()}

    def words(text):
        ids = encoder.tokenizer(text)
        row = encoder.tokenizer.encode(text)
        if rule == "masked":
            ids = ids[:, : row.length]
        with torch.no_grad():
            tokens = model.text(ids, torch.tensor([row.length]), return_tokens=True).tokens[0].double().numpy()
        own = tokens @ numbers["text.weight"].T + numbers["text.bias"]
        return own / np.linalg.norm(own, axis=1, keepdims=True)

    classes = []
    for name in names:
        prompts = [words(template.format(name)) for template in TEMPLATES]
        longest = max(len(prompt) for prompt in prompts)
        rows = [np.mean([p[i] for p in prompts if i < len(p)], axis=0) for i in range(longest)]
        matrix = np.stack(rows)
        scale = np.linalg.norm(matrix) if rule == "published" else np.linalg.norm(matrix, axis=1, keepdims=True)
        classes.append(matrix / scale)
    with torch.no_grad():
        patches = model.image(images, return_tokens=True).tokens.double().numpy()
    own = patches @ numbers["image.weight"].T + numbers["image.bias"]
    own = own / np.linalg.norm(own, axis=2, keepdims=True)
    return np.array([[(image @ words.T).max(axis=1).mean() for words in classes] for image in own])


@pytest.mark.parametrize("rule", ["masked", "published"])
def test_scores_equal_the_definition(encoder, maps, tmp_path, rule):
    names = ("red", "a very bright yellow indeed", "blue green")
    size = encoder.model.config.vision.image_size
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        scorer = token_encoder(encoder, str(tmp_path), names, TEMPLATES, rule)
        scores = scorer.model.encode_image(images)
    expected = reference(encoder, maps, images, names, rule)
    np.testing.assert_allclose(scores.numpy(), expected, atol=2e-6)


def test_classes_in_pieces_give_the_same_scores(monkeypatch):
    draw = torch.Generator().manual_seed(2)
    images = torch.randn(3, 4, WIDTH, generator=draw)
    classes = ClassTokens(torch.randn(7, 6, WIDTH, generator=draw), torch.rand(7, 6, generator=draw) > 0.4)
    classes.real[:, 0] = True
    whole = token_scores(images, classes)
    monkeypatch.setattr("diptych.evaluate._token_wise.SIMILARITIES", 150)
    torch.testing.assert_close(token_scores(images, classes), whole)


def test_the_evaluator_scores_by_tokens_and_not_by_pooled_features(encoder, maps, folders, tmp_path):
    source = open_source(str(folders))
    options = ZeroshotOptions(templates="simple", token_maps=str(tmp_path))
    result = Zeroshot().run(encoder, source, options)
    with torch.no_grad():
        scorer = token_encoder(encoder, str(tmp_path), result.classes, result.templates, "masked")
        scores = scorer.images(source, result.indices, lambda count: None)
    assert torch.equal(result.answers[:, 0], scores.argmax(dim=1))
    assert torch.allclose(result.scores[:, 0], scores.amax(dim=1))
    pooled = Zeroshot().run(encoder, source, ZeroshotOptions(templates="simple"))
    assert not torch.allclose(result.scores, pooled.scores, atol=1e-3)


def test_maps_of_other_towers_and_of_no_file_are_one_line(encoder, maps, tmp_path):
    state = dict(encoder.model.state_dict())
    assert len(read_token_maps(str(tmp_path), state).image_bias) == WIDTH
    name = next(name for name in state if name.startswith("text."))
    other = {**state, name: state[name] + 1}
    with pytest.raises(ConfigError, match="other towers"):
        read_token_maps(str(tmp_path), other)
    with pytest.raises(ConfigError, match="no such file"):
        read_token_maps(str(tmp_path / "absent"), state)
    torch.save({"a": torch.zeros(2)}, tmp_path / "no.pt")
    with pytest.raises(ConfigError, match="no token maps"):
        read_token_maps(str(tmp_path / "no.pt"), state)
    whole = (tmp_path / "token_maps.safetensors").read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        (tmp_path / "token_maps.safetensors").write_bytes(content)
        with pytest.raises(WeightsError, match=r"the file is empty|not a whole safetensors file"):
            read_token_maps(str(tmp_path), state)


@pytest.mark.parametrize(
    "objective", ["filip --dense-dim 12", "defilip --ssl-norm layer --queue-size 64 --dense-dim 12"]
)
def test_a_run_is_scored_by_its_own_maps(objective, folders, tmp_path, capsys):
    rows = [{"image": f"{name}/8.png", "captions": [f"a {name} square", f"{name} paint"]} for name in COLORS]
    (folders / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    train = (
        f"train --train-data {folders / 'pairs.jsonl'} --image-root {folders} --output {run} --objective {objective}"
    )
    small = "--model tiny-test --batch-size 5 --epochs 1 --workers 0 --device cpu"
    assert main(f"{train} {small}".split()) == 0
    capsys.readouterr()
    (folders / "pairs.jsonl").unlink()
    command = ["evaluate", "--pretrained", str(run), "--imagenet-val", str(folders), "--token-maps", str(run)]
    assert main([*command, "--json", "--workers", "0", "--device", "cpu"]) == 0
    [entry] = json.loads(capsys.readouterr().out)
    assert entry["count"]["images"] == 20
