"""What the contract gives towers of a batch's views: pixels, ids, lengths, seeds of each view; precomputed features."""

from types import SimpleNamespace

import pytest
import torch

from diptych.errors import ConfigError
from diptych.objectives import Objective, ObjectiveOptions, view_seeds
from diptych.types import Encoded, Wants

from .worlds import make_batch


class Recorder(torch.nn.Module):
    """A tower that remembers how it was called."""

    def forward(self, *arguments, **options):
        self.call = (arguments, options)
        return Encoded(torch.ones(1), torch.ones(1))


@pytest.fixture
def objective():
    model = torch.nn.Module()
    model.image, model.text = Recorder(), Recorder()
    return Objective(ObjectiveOptions(), model)


BATCH = make_batch(3, Wants(images=("crop", "strong"), texts=("caption", "augmented")))


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("return_tokens", [False, True])
def test_a_view_is_encoded_with_its_own_seeds(objective, view, return_tokens):
    objective.encode_images(BATCH, view, return_tokens)
    (images,), options = objective.model.image.call
    assert torch.equal(images, BATCH.images[view])
    assert options["return_tokens"] == return_tokens and torch.equal(options["seeds"], view_seeds(BATCH, view))
    objective.encode_texts(BATCH, view, return_tokens)
    (tokens, lengths), options = objective.model.text.call
    assert torch.equal(tokens, BATCH.tokens[view]) and torch.equal(lengths, BATCH.lengths[view])
    assert options["return_tokens"] == return_tokens and torch.equal(options["seeds"], view_seeds(BATCH, view))


def test_the_first_view_without_tokens_is_the_default(objective):
    objective.encode_images(BATCH)
    assert torch.equal(objective.model.image.call[0][0], BATCH.images[0])
    assert objective.model.image.call[1]["return_tokens"] is False
    objective.encode_texts(BATCH)
    assert torch.equal(objective.model.text.call[0][0], BATCH.tokens[0])
    assert objective.model.text.call[1]["return_tokens"] is False


def test_seeds_of_views_differ_and_those_of_the_first_are_the_pairs():
    assert torch.equal(view_seeds(BATCH, 0), BATCH.seeds)
    seeds = torch.cat([view_seeds(BATCH, view) for view in range(8)])
    assert len(seeds.unique()) == len(seeds)


def test_precomputed_features_stand_in_for_the_first_view_only(objective):
    batch = BATCH._replace(image_features=torch.arange(6.0).view(3, 2))
    assert torch.equal(objective.encode_images(batch).pooled, batch.image_features)
    assert torch.equal(objective.encode_images(batch).state, batch.image_features)
    assert not hasattr(objective.model.image, "call")
    for options in ({"view": 1}, {"return_tokens": True}):
        with pytest.raises(ConfigError, match="--cache-features"):
            objective.encode_images(batch, **options)


def test_companions_are_not_parameters_and_stay_in_evaluation_mode(objective):
    teacher = torch.nn.Linear(2, 2)
    assert objective.add_companion("teacher", teacher) is teacher
    objective.train()
    assert objective.frozen() == {"teacher": teacher} and not teacher.training
    assert not list(objective.parameters()) and not objective.state_dict()
    objective.frozen().clear()
    assert objective.frozen()


def test_locked_scales_are_no_compare_parameters():
    scale, bias = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1), requires_grad=False)
    model = torch.nn.Module()
    model.logit_scale, model.logit_bias = scale, bias
    objective = Objective(ObjectiveOptions(), model)
    assert [item is scale for item in objective.compare_parameters()] == [True]
    model.logit_bias = None
    assert [item is scale for item in objective.compare_parameters()] == [True]


def test_a_base_class_promises_nothing_by_itself():
    objective = Objective(ObjectiveOptions(), torch.nn.Module())
    assert Objective.model_needs(ObjectiveOptions()) == type(Objective.model_needs(None))()
    assert objective.encode_frozen(SimpleNamespace()) is None and objective.after_step(None, None) is None
    for call in (lambda: objective.encode(BATCH), lambda: objective.compare(None, None), Objective.examples):
        with pytest.raises(NotImplementedError):
            call()


def test_validation_compares_what_was_encoded_with_frozen_features():
    class Echo(Objective):
        def encode_frozen(self, batch):
            return ("frozen", batch)

        def encode(self, batch, frozen=None):
            return (frozen, batch)

        def compare(self, features, pairs):
            return features, pairs

    (frozen, encoded), pairs = Echo(ObjectiveOptions(), torch.nn.Module()).validation_terms(BATCH)
    assert frozen == ("frozen", BATCH) and encoded is BATCH
    assert pairs.keys == BATCH.keys and torch.equal(pairs.seeds, BATCH.seeds)


def test_features_are_asked_of_the_model_with_all_that_was_given():
    calls = []

    class Model(torch.nn.Module):
        def encode_image(self, images):
            calls.append((images,))
            return "image"

        def encode_text(self, tokens, lengths=None, prefix=None, *, plan=None):
            calls.append((tokens, lengths, prefix, plan))
            return "text"

    objective = Objective(ObjectiveOptions(), Model())
    assert objective("image", "pixels") == "image"
    assert objective("text", "ids", "lengths", "prefix", "plan") == "text"
    assert calls == [("pixels",), ("ids", "lengths", "prefix", "plan")]
