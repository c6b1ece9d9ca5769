"""The zero-shot classifier: equal to encoding every prompt alone, cached under what it depends on, never stale."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from diptych.devices import get_device
from diptych.errors import ConfigError
from diptych.evaluate import _classifier as classifier
from diptych.evaluate._classifier import build_classifier
from diptych.evaluate._encode import Encoder
from diptych.evaluate._prompts import class_set, fill, load_templates
from diptych.models import create_model
from diptych.text import get_tokenizer
from tests.evaluate.colors import Model
from tests.evaluate.colors import Tokenizer as ColorTokenizer

NAMES = [*list(class_set("imagenet").values())[::90], "tiger 虎", "a&amp;b", "x"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("emoji-64").eval()


def encoder(model, tokenizer=None, precision="fp32", cache=False):
    tokenizer = tokenizer or get_tokenizer("bpe", 32)
    return Encoder(model, tokenizer, None, get_device("cpu"), precision=precision, cache=cache)


def separately(model, names, templates):
    tokenizer = get_tokenizer("bpe", 32)
    rows = []
    with torch.no_grad():
        for name in names:
            alone = [model.encode_text(tokenizer(fill(template, name)), normalize=True)[0] for template in templates]
            rows.append(functional.normalize(torch.stack(alone).mean(dim=0), dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("at_once", [1, 60, 1 << 13])
def test_it_equals_every_prompt_encoded_alone(model, monkeypatch, at_once):
    monkeypatch.setattr(classifier, "TOKENS_AT_ONCE", at_once)
    templates = load_templates("prompt8")
    done: list[int] = []
    vectors = build_classifier(encoder(model), NAMES, templates, done.append)
    assert sum(done) == len(NAMES) * len(templates)
    assert (vectors - separately(model, NAMES, templates)).abs().max() < 1e-6


def test_a_single_class_and_bare_names_are_fine(model):
    for names, templates in ((["dog"], ("a {}.", "the {}")), (["dog", "dog house", "cat"], ("{}",)), (["x"], ("{}",))):
        vectors = build_classifier(encoder(model), names, templates, lambda n: None)
        assert (vectors - separately(model, names, templates)).abs().max() < 1e-6


def test_a_tower_that_shares_nothing_is_encoded_whole():
    names, templates = ["red", "blue"], ("a {}", "very {} indeed")
    vectors = build_classifier(encoder(Model(), ColorTokenizer()), names, templates, lambda n: None)
    assert vectors.shape == (2, 3) and torch.allclose(vectors.norm(dim=1), torch.ones(2))


def test_the_cached_classifier_is_used_and_every_change_makes_another(model, monkeypatch):
    calls: list[int] = []
    real = classifier._build
    monkeypatch.setattr(classifier, "_build", lambda *a: (calls.append(1), real(*a))[1])

    def build(names=("dog", "cat"), templates=("a {}.", "b {}"), precision="fp32", of=model):
        done: list[int] = []
        vectors = build_classifier(encoder(of, precision=precision, cache=True), names, templates, done.append)
        assert sum(done) == len(names) * len(templates)
        return vectors, len(calls)

    first, count = build()
    again, same = build()
    assert torch.equal(first, again) and count == same == 1
    assert build(names=("dog", "cow"))[1] == 2
    assert build(templates=("a {}.", "b {} "))[1] == 2  # a blank at the end is no other prompt
    assert build(templates=("a {}.", "c {}"))[1] == 3
    assert build(precision="bf16")[1] == 4
    weight = model.text.projection.weight
    with torch.no_grad():
        weight[0, 0] += 1e-3
        assert build()[1] == 5
        weight[0, 0] -= 1e-3


def test_a_damaged_cache_is_built_again(model, tmp_path):
    first = build_classifier(encoder(model, cache=True), ["dog"], ["a {}"], lambda n: None)
    for path in (tmp_path / "cache" / "classifiers").iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    assert torch.equal(build_classifier(encoder(model, cache=True), ["dog"], ["a {}"], lambda n: None), first)


def test_a_cache_that_cannot_be_written_is_no_failure(model, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "file"))
    assert len(build_classifier(encoder(model, cache=True), ["dog"], ["a {}"], lambda n: None)) == 1


def test_nothing_to_classify_is_a_clear_line(model):
    with pytest.raises(ConfigError, match="0 class names"):
        build_classifier(encoder(model), [], ["a {}"], lambda n: None)
