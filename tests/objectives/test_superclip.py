"""SuperCLIP: which tokens count, how often they were seen, captions without a word, and what it cannot be combined with."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.distributed.process_group import world_from_environment
from diptych.errors import ConfigError
from diptych.models import create_model
from diptych.objectives import pairs_of
from diptych.objectives.clip import Clip, ClipConfig
from diptych.objectives.superclip import SuperClip, SuperClipConfig
from tests.distributed._processes import run_in_processes

from .batch_references import FROM_BATCH
from .worlds import EXAMPLES, batch_for, make_objective, own_rows, without

VOCABULARY = 512


def captioned(objective, captions):
    """A batch whose captions are these ids, between CLIP's start and end token as the vocabulary of tests has them."""
    batch = batch_for(objective, len(captions))
    longest = max(map(len, captions)) + 2
    tokens = torch.zeros(1, len(captions), longest, dtype=torch.int64)
    for row, ids in enumerate(captions):
        tokens[0, row, : len(ids) + 2] = torch.tensor([VOCABULARY - 2, *ids, VOCABULARY - 1])
    return batch._replace(tokens=tokens, lengths=torch.tensor([[len(ids) + 2 for ids in captions]]))


def classification(objective, batch):
    return objective("terms", batch)[0].losses["classification"]


def counted(objective, *batches):
    for batch in batches:
        _, features = objective("terms", batch)
        objective.after_step(features, pairs_of([batch]))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.integers(1, 20), max_size=6), min_size=1, max_size=5), st.integers(0, 3))
def test_any_captions_give_the_reference(captions, seen):
    objective = make_objective(EXAMPLES["superclip-0"])
    earlier = [captioned(objective, [[5, 6], [6]])] * seen
    counted(objective, *earlier)
    batch = captioned(objective, captions)
    with torch.no_grad():
        mean = objective.model.image(batch.images[0], return_tokens=True).tokens.mean(dim=1)
        shares = torch.log_softmax(objective.classifier(mean), dim=1).numpy()
    everything = [{5, 6}, {6}] * seen + [set(ids) for ids in captions]
    expected = 0.0
    for row, ids in zip(shares, captions, strict=True):
        weights = {c: np.log((len(everything) + 1) / (sum(c in other for other in everything) + 1)) for c in set(ids)}
        whole = sum(weights.values())
        expected -= sum(weight / whole * row[c] for c, weight in weights.items()) / len(captions) if whole else 0.0
    assert classification(objective, batch).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_captions_without_a_word_and_equal_captions_give_zero():
    objective = make_objective(EXAMPLES["superclip-0"])
    for captions in ([[], [], []], [[7, 8], [8, 7], [7, 8, 8]]):
        loss = classification(objective, captioned(objective, captions))
        assert loss.item() == 0
        loss.backward()
        assert bool(torch.isfinite(objective.classifier.weight.grad).all())


def test_padding_is_no_word_but_the_token_of_its_number_is():
    objective = make_objective(EXAMPLES["superclip-0"])
    counted(objective, captioned(objective, [[0, 3], [4]]))
    counts = objective.document_counts
    assert (counts[0], counts[3], counts[4], counts.sum() - counts[VOCABULARY - 2 :].sum()) == (1, 1, 1, 3)
    assert objective.documents.item() == 2


def test_special_tokens_of_a_known_vocabulary_are_not_counted():
    objective = SuperClip(SuperClipConfig(), create_model("tiny-test"))
    assert objective.special.tolist() == [49406, 49407]
    counted(objective, batch_for(objective))
    assert objective.document_counts[objective.special].tolist() == [0, 0]
    assert SuperClip(SuperClipConfig(), create_model("tiny-test-siglip")).special.tolist() == [1]


def in_process():
    objective = make_objective(EXAMPLES["superclip-0"])
    counted(objective, *(own_rows(batch_for(objective, 8, seed=seed), world_from_environment()) for seed in (0, 1)))
    return objective.document_counts.numpy().copy(), objective.documents.item()


def test_two_processes_count_as_one():
    expected = in_process()
    assert expected[1] == 16
    for counts, documents in run_in_processes(2, in_process):
        np.testing.assert_array_equal(counts, expected[0])
        assert documents == 16


def test_gradients_by_finite_differences():
    objective = make_objective(EXAMPLES["superclip-0"])
    batch = batch_for(objective)
    features = objective.encode(batch)

    def loss(mean):
        return objective.compare(features._replace(mean=mean), None).losses["classification"]

    assert torch.autograd.gradcheck(loss, features.mean.detach().clone().requires_grad_())


@pytest.mark.parametrize("name", ["superclip-0", "superclip-1"])
def test_fp32_is_near_the_reference_and_validation_is_clips(name):
    objective = make_objective(EXAMPLES[name], torch.float32).eval()
    batch = batch_for(objective)
    losses = objective("terms", batch)[0].losses
    with torch.no_grad():
        image = objective.model.image(batch.images[0]).pooled.numpy()
        text = objective.model.text(batch.tokens[0], batch.lengths[0]).pooled.numpy()
        validation = objective("validation", batch).losses
    expected = FROM_BATCH["superclip"](objective, batch, image, text)
    assert {key: item.item() for key, item in losses.items()} == pytest.approx(expected, rel=1e-5)
    clip = Clip(ClipConfig(), objective.model)("validation", batch).losses
    assert validation.keys() == {"contrastive"} and torch.allclose(validation["contrastive"], clip["contrastive"])


def test_the_weight_scales_the_classification_alone():
    values = [
        {key: item.item() for key, item in objective("terms", batch_for(objective))[0].losses.items()}
        for objective in (
            make_objective(without(EXAMPLES["superclip-0"], superclip_weight=weight)) for weight in (1.0, 3.0)
        )
    ]
    assert values[1]["classification"] == pytest.approx(3 * values[0]["classification"])
    assert values[1]["contrastive"] == pytest.approx(values[0]["contrastive"])


def test_a_locked_image_tower_is_refused():
    model = create_model("tiny-test").lock(image=True)
    with pytest.raises(ConfigError, match="--lock-image locks"):
        SuperClip(SuperClipConfig(), model)


def test_building_it_leaves_the_model_as_it_was():
    model = create_model("tiny-test").train()
    SuperClip(SuperClipConfig(), model)
    assert model.training and model.image.training
    assert not SuperClip(SuperClipConfig(), model.eval()).model.image.training
