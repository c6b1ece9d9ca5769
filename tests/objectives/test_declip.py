"""DeCLIP: what each option leaves out, the queue's order and lookups, captions without a word, and the runs that it refuses."""

import math

import numpy as np
import pytest
import torch

from diptych.distributed.process_group import world_from_environment
from diptych.errors import ConfigError
from diptych.models import ModelNeeds, create_model
from diptych.objectives import RunFacts, create_objective, pairs_of
from diptych.objectives._heads import LocalBatchNorm
from diptych.objectives._terms import unit
from diptych.objectives.clip import Clip, ClipConfig
from diptych.objectives.declip import DeclipConfig
from diptych.types import IGNORED, MaskedTokens
from tests.distributed._processes import run_in_processes

from .batch_references import FROM_BATCH
from .view_references import _cosine, head
from .worlds import EXAMPLES, batch_for, make_objective, own_rows, without

SMALL = EXAMPLES["declip-0"]


def losses(objective, batch):
    return objective("terms", batch)[0].losses


def built(**options):
    return create_objective(
        DeclipConfig(queue_size=64, simsiam_width=8, simsiam_bottleneck=4, **options), create_model("tiny-test")
    )


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.startswith("declip-")])
def test_fp32_is_near_the_reference_and_validation_is_clips(name):
    objective = make_objective(EXAMPLES[name], torch.float32)
    for module in objective.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    batch = batch_for(objective, 8)
    actual = losses(objective, batch)
    expected = FROM_BATCH["declip"](objective, batch, None, None)
    assert {key: item.item() for key, item in actual.items()} == pytest.approx(expected, rel=2e-5)
    with torch.no_grad():
        validation = objective.eval()("validation", batch).losses
        clip = Clip(ClipConfig(), objective.model)("validation", batch).losses
    assert validation.keys() == {"contrastive"} and torch.allclose(validation["contrastive"], clip["contrastive"])


def features_of(objective, pairs=4):
    features = objective.encode(batch_for(objective, pairs))
    return type(features)(*(None if item is None else item.detach() for item in features))


@pytest.mark.parametrize("field", ["image_1", "text_1", "text_2", "masked_sums"])
def test_gradients_by_finite_differences(field):
    # Without SimSiam, whose gradient is not that of its value: targets are held fixed.
    objective = make_objective(without(SMALL, simsiam_weight=0.0, simsiam_width=1024, simsiam_bottleneck=512))
    features = features_of(objective)

    def loss(item):
        return torch.stack(list(objective.compare(features._replace(**{field: item}), None).losses.values())).sum()

    assert torch.autograd.gradcheck(loss, getattr(features, field).clone().requires_grad_(), atol=1e-6)


def test_simsiams_gradient_is_that_with_fixed_targets():
    objective = make_objective(SMALL)
    features = features_of(objective)
    leaf = features.image_1.clone().requires_grad_()
    objective.compare(features._replace(image_1=leaf), None).losses["simsiam"].backward()
    target = head(objective.projector, features.image_2.numpy())

    def value(image):
        return -0.2 * _cosine(head(objective.predictor, head(objective.projector, image)), target) / 2

    image, numeric = features.image_1.numpy(), np.zeros(leaf.shape)
    for index in np.ndindex(image.shape):
        step = np.zeros_like(image)
        step[index] = 1e-6
        numeric[index] = (value(image + step) - value(image - step)) / 2e-6
    np.testing.assert_allclose(leaf.grad, numeric, atol=1e-7)


def test_what_is_wanted_follows_the_options():
    wants = built().wants
    assert (wants.images, wants.texts, wants.masked) == (("strong", "strong"), ("caption", "augmented"), True)
    assert built(second_text="another").wants.texts == ("caption", "another")
    image_only = built(declip_views="image")
    assert image_only.wants.texts == ("caption",)
    unmasked = built(mlm_weight=0.0)
    assert unmasked.wants.masked is False and unmasked.token_head is None
    assert type(unmasked).model_needs(DeclipConfig(mlm_weight=0.0)) == ModelNeeds()
    assert type(unmasked).model_needs(DeclipConfig()) == ModelNeeds(mask_token=True)


def test_a_term_of_weight_zero_has_no_head_and_no_queue():
    objective = create_objective(DeclipConfig(nn_weight=0.0, simsiam_weight=0.0), create_model("tiny-test"))
    assert objective.projector is objective.predictor is objective.text_queue is None
    assert objective.equal_buffers == () and built().equal_buffers == ("text_queue.entries", "text_queue.position")
    assert set(dict(built().named_buffers())) >= set(built().equal_buffers)


def test_published_sizes_are_the_defaults():
    config = DeclipConfig()
    weights = (config.contrastive_weight, config.nn_weight, config.simsiam_weight, config.mlm_weight)
    assert weights == (0.4, 0.2, 0.2, 0.2)
    assert (config.queue_size, config.nn_topk) == (65536, 1)
    assert (config.simsiam_width, config.simsiam_bottleneck) == (1024, 512)


def queue_after(steps=1, pairs=6, **changes):
    """The objective after steps, and the unit texts of the last of them."""
    objective = make_objective(without(SMALL, **changes))
    for seed in range(steps):
        batch = own_rows(batch_for(objective, pairs, seed=seed), world_from_environment())
        _, features = objective("terms", batch)
        objective.after_step(features, pairs_of([batch]))
    return objective, features


def test_the_second_text_is_enqueued_first_then_the_masked_one():
    objective, features = queue_after()
    entries = objective.text_queue.entries
    assert torch.equal(entries[:6], unit(features.text_2)) and torch.equal(entries[6:12], unit(features.text_1))
    assert objective.text_queue.position.tolist() == [12]
    objective, features = queue_after(declip_views="image")
    assert torch.equal(objective.text_queue.entries[:6], unit(features.text_1))
    assert objective.text_queue.position.tolist() == [6]


def test_neighbors_are_searched_before_the_steps_texts_are_enqueued():
    objective = make_objective(SMALL)
    batch = batch_for(objective)
    before = objective.text_queue.entries.clone()
    terms, features = objective("terms", batch)
    assert torch.equal(objective.text_queue.entries, before)
    assert terms.metrics["nn_similarity"] < 0.999
    objective.after_step(features, pairs_of([batch]))
    assert objective("terms", batch)[0].metrics["nn_similarity"].item() == pytest.approx(1)


def test_a_queue_that_wraps_keeps_the_newest_and_compat_does_not():
    objective, features = queue_after(steps=4)  # 48 texts in 40 entries
    newest = torch.cat([unit(features.text_2), unit(features.text_1)])
    indices = (torch.arange(36, 48)) % 40
    assert torch.equal(objective.text_queue.entries[indices], newest)
    assert objective.text_queue.position.tolist() == [8]
    objective, features = queue_after(steps=4, compat=True)
    assert torch.equal(objective.text_queue.entries[36:], unit(features.text_2)[:4])
    assert torch.equal(objective.text_queue.entries[:6], unit(features.text_1))
    assert objective.text_queue.position.tolist() == [6]


def in_process():
    objective, _ = queue_after(steps=4)
    heads = {name: item.numpy().copy() for name, item in objective.named_buffers() if "running" in name}
    return objective.text_queue.entries.numpy().copy(), objective.text_queue.position.item(), heads


def test_two_processes_have_the_queue_and_the_statistics_of_one():
    expected = in_process()
    for entries, position, heads in run_in_processes(2, in_process):
        np.testing.assert_allclose(entries, expected[0], atol=1e-12)
        assert position == expected[1] == 8
        assert heads.keys() == expected[2].keys() and heads
        for name, item in heads.items():
            np.testing.assert_allclose(item, expected[2][name], atol=1e-12, err_msg=name)


def with_captions(objective, captions, predicted=()):
    """A batch of these ids between a start and an end token; ``predicted`` are (text, position) whose token is masked."""
    batch, vocabulary = batch_for(objective, len(captions)), objective.model.config.text.vocab_size
    tokens = torch.zeros(2, len(captions), max(map(len, captions)) + 2, dtype=torch.int64)
    for row, ids in enumerate(captions):
        tokens[:, row, : len(ids) + 2] = torch.tensor([vocabulary - 2, *ids, vocabulary - 1])
    targets, masked = torch.full_like(tokens[0], IGNORED), tokens[0].clone()
    for row, position in predicted:
        targets[row, position], masked[row, position] = tokens[0, row, position], 7
    lengths = torch.tensor([[len(ids) + 2 for ids in captions]] * 2)
    return batch._replace(tokens=tokens, lengths=lengths, masked=MaskedTokens(masked, targets))


@pytest.mark.parametrize(
    ("captions", "predicted"),
    [
        ([[5], [6], [5]], [(0, 1), (1, 1), (2, 1)]),  # captions of one word, each masked
        ([[], [], []], []),  # nothing between start and end: nothing can be masked
        ([[5, 9, 8], [], [6]], [(0, 2)]),
        ([[4] * 3] * 4, [(3, 1), (3, 2), (3, 3)]),  # equal captions, one text with all its tokens masked
    ],
)
def test_short_and_unmasked_captions_give_the_reference_and_finite_gradients(captions, predicted):
    objective = make_objective(SMALL)
    batch = with_captions(objective, captions, predicted)
    actual = losses(objective, batch)
    expected = FROM_BATCH["declip"](objective, batch, None, None)
    assert {key: item.item() for key, item in actual.items()} == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if not predicted:
        assert actual["mlm"].item() == 0
    torch.stack(list(actual.values())).sum().backward()
    assert all(bool(item.grad.isfinite().all()) for item in objective.parameters())
    if not predicted:
        assert not objective.token_head.weight.grad.any()


def test_masked_tokens_are_predicted_from_what_is_left_of_them():
    objective = make_objective(SMALL)
    batches = [with_captions(objective, [[5, 9, word], [3, 4, 6]], [(0, 2)]) for word in (8, 11)]
    values = [losses(objective, batch)["mlm"].item() for batch in batches]
    assert values[0] == values[1]


def test_compat_averages_masked_tokens_by_process_and_normalizes_by_process():
    objective = make_objective(without(SMALL, compat=True))
    norms = [layer for layer in (*objective.projector, *objective.predictor) if isinstance(layer, torch.nn.BatchNorm1d)]
    assert len(norms) == 4 and all(isinstance(layer, LocalBatchNorm) for layer in norms)
    assert objective.text_queue.drops_rest
    batch = batch_for(objective)
    expected = FROM_BATCH["declip"](objective, batch, None, None)  # in one process the formulas are the same
    actual = {key: item.item() for key, item in losses(objective, batch).items()}
    assert actual == pytest.approx(expected, rel=1e-10)


def test_the_scale_lies_in_the_familys_range():
    assert built().scale_range == built(compat=True).scale_range == (3.0, math.log(100))


@pytest.mark.parametrize(
    ("options", "facts", "message"),
    [
        ({}, {"pairs": 31}, "--ssl-norm batch: 31 pairs"),
        (
            {},
            {"pairs": 33},
            r"--queue-size 64: a step enqueues 66 text features \(33 pairs x 1 processes x 2 views\); give at",
        ),
        ({}, {"pairs": 32, "processes": 2}, "--queue-size 64: a step enqueues 128"),
        ({}, {"pairs": 32}, ""),
        ({"declip_views": "image"}, {"pairs": 32, "processes": 2}, ""),
        ({"declip_views": "image"}, {"pairs": 65}, "x 1 views"),
        ({"ssl_norm": "layer"}, {"pairs": 8}, ""),
    ],
)
def test_runs_that_cannot_be_are_refused_before_the_first_step(options, facts, message):
    objective, facts = built(**options), RunFacts(records=640, epochs=1, **facts)
    if not message:
        objective.begin_run(facts)
        return
    with pytest.raises(ConfigError, match=message):
        objective.begin_run(facts)


@pytest.mark.parametrize(
    ("options", "lock", "message"),
    [
        (
            {"second_text": "another", "declip_views": "image"},
            {},
            "--second-text another goes with --declip-views both",
        ),
        ({"nn_topk": 65, "queue_size": 64}, {}, "--nn-topk 65: the queue has --queue-size 64 entries"),
        ({"nn_weight": 0.0, "queue_size": 64}, {}, "--queue-size 64: --nn-weight 0 leaves its loss out"),
        ({"simsiam_weight": 0.0, "ssl_norm": "layer"}, {}, "--ssl-norm layer: --simsiam-weight 0 leaves"),
        ({}, {"image": True}, "--simsiam-weight 0.2 teaches a tower that --lock-image locks"),
        ({}, {"text": True}, "--mlm-weight 0.2 teaches a tower that --lock-text locks"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, lock, message):
    with pytest.raises(ConfigError, match=message):
        create_objective(DeclipConfig(**options), create_model("tiny-test").lock(**lock))


def test_locked_towers_go_with_terms_that_do_not_teach_them():
    create_objective(DeclipConfig(simsiam_weight=0.0), create_model("tiny-test").lock(image=True))
    create_objective(DeclipConfig(mlm_weight=0.0), create_model("tiny-test").lock(text=True))
