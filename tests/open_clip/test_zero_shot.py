"""The package's class vectors, prompts and class names beside open_clip's; and what they refuse."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diptych.errors import ConfigError
from diptych.open_clip import zero_shot_classifier as ours
from diptych.open_clip import zero_shot_metadata as metadata
from diptych.open_clip.tokenizer import tokenize

NAMES = ["dog", "tabby cat", "{braces}", 'it\'s "x"', "東京", "dog"]
TEMPLATES = ["a photo of a {}.", "art of {}"]


class Bag(torch.nn.Module):
    """A text tower that is fast and tells token ids apart."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(49408, 16)
        torch.nn.init.normal_(self.embedding.weight, generator=torch.Generator().manual_seed(1))

    def encode_text(self, text, normalize=False):
        features = self.embedding(text).mean(dim=1)
        return F.normalize(features, dim=-1) if normalize else features


def test_templates_and_names_are_open_clips(peer):
    theirs = peer.zero_shot_metadata
    assert metadata.IMAGENET_CLASSNAMES == theirs.IMAGENET_CLASSNAMES
    for name in ("OPENAI_IMAGENET_TEMPLATES", "SIMPLE_IMAGENET_TEMPLATES"):
        own, other = getattr(metadata, name), getattr(theirs, name)
        assert type(own) is type(other)
        assert [template("x{} y") for template in own] == [template("x{} y") for template in other]


@pytest.mark.parametrize("per_batch", [None, 1, 4, 10])
@pytest.mark.parametrize("templates", [TEMPLATES, metadata.SIMPLE_IMAGENET_TEMPLATES], ids=["strings", "functions"])
def test_class_vectors_are_open_clips(peer, templates, per_batch):
    model = Bag()
    arguments = (model, tokenize, NAMES, templates)
    assert torch.equal(
        ours.build_zero_shot_classifier(*arguments, num_classes_per_batch=per_batch),
        peer.build_zero_shot_classifier(*arguments, num_classes_per_batch=per_batch),
    )
    assert torch.equal(
        ours.build_zero_shot_classifier_legacy(*arguments), peer.build_zero_shot_classifier_legacy(*arguments)
    )


def test_a_class_vector_is_the_mean_of_its_prompts():
    model = Bag()
    vectors = ours.build_zero_shot_classifier(model, tokenize, NAMES, TEMPLATES, num_classes_per_batch=4)
    assert vectors.shape == (16, len(NAMES))
    assert not vectors.requires_grad
    for number, name in enumerate(NAMES):
        prompts = [template.replace("{}", name) for template in TEMPLATES]
        mean = model.encode_text(tokenize(prompts), normalize=True).mean(0)
        assert torch.allclose(vectors[:, number], F.normalize(mean, dim=0), atol=1e-6)
    legacy = ours.build_zero_shot_classifier_legacy(model, tokenize, NAMES, TEMPLATES)
    assert torch.allclose(legacy, vectors, atol=1e-6)


def test_lists_are_whole_and_travel():
    assert len(metadata.OPENAI_IMAGENET_TEMPLATES) == 80
    assert len(metadata.SIMPLE_IMAGENET_TEMPLATES) == 7
    assert len(metadata.IMAGENET_CLASSNAMES) == 1000
    first = pickle.loads(pickle.dumps(metadata.OPENAI_IMAGENET_TEMPLATES))[0]
    assert first("dog") == "a bad photo of a dog."


def test_batches():
    assert list(ours.batched("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(ours.batched(iter([]), 2)) == []
    with pytest.raises(ConfigError):
        list(ours.batched([1], 0))


@pytest.mark.parametrize("build", [ours.build_zero_shot_classifier, ours.build_zero_shot_classifier_legacy])
@pytest.mark.parametrize(
    ("names", "templates"),
    [
        ([], TEMPLATES),
        (NAMES, []),
        ("dog", TEMPLATES),
        (NAMES, "a photo of a {}."),
        (np.array(NAMES), TEMPLATES),
        (NAMES, ["a photo"]),
    ],
)
def test_mistakes_are_one_line(build, names, templates):
    with pytest.raises(ConfigError) as caught:
        build(Bag(), tokenize, names, templates)
    assert "\n" not in str(caught.value)
