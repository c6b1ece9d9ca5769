"""DeFILIP: the token-wise term beside DeCLIP's, its pairs of views, its scale, padding, and what it refuses."""

import pytest
import torch

from diptych.errors import ConfigError
from diptych.models import create_model
from diptych.objectives import create_objective, pairs_of
from diptych.objectives.declip import DeclipConfig
from diptych.objectives.defilip import DefilipConfig
from diptych.types import IGNORED

from .batch_references import FROM_BATCH
from .worlds import EXAMPLES, batch_for, make_objective, without

SMALL = EXAMPLES["defilip-0"]


def losses(objective, batch):
    return {name: item.item() for name, item in objective("terms", batch)[0].losses.items()}


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.startswith("defilip-")])
def test_fp32_is_near_the_reference(name):
    objective = make_objective(EXAMPLES[name], torch.float32)
    for module in objective.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    batch = batch_for(objective, 8)
    assert losses(objective, batch) == pytest.approx(FROM_BATCH["defilip"](objective, batch, None, None), rel=2e-5)


@pytest.mark.parametrize("dense_aug", [False, True])
def test_compat_compares_padding_to_the_whole_context(dense_aug):
    objective = make_objective(without(SMALL, compat=True, dense_aug=dense_aug))
    batch = batch_for(objective)
    actual = losses(objective, batch)
    assert actual == pytest.approx(FROM_BATCH["defilip"](objective, batch, None, None), rel=1e-10)
    masked = losses(make_objective(without(SMALL, dense_aug=dense_aug)), batch)
    assert actual["dense"] != pytest.approx(masked["dense"], rel=1e-6)
    for name in ("contrastive", "mlm", "nearest", "simsiam"):  # padding changes nothing else
        assert actual[name] == pytest.approx(masked[name], rel=1e-9)


def test_padding_of_a_batch_changes_nothing():
    objective = make_objective(SMALL)
    batch = batch_for(objective)
    longer = batch._replace(
        tokens=torch.nn.functional.pad(batch.tokens, (0, 5)),
        masked=batch.masked._replace(
            tokens=torch.nn.functional.pad(batch.masked.tokens, (0, 5)),
            targets=torch.nn.functional.pad(batch.masked.targets, (0, 5), value=IGNORED),
        ),
    )
    assert losses(objective, longer) == pytest.approx(losses(objective, batch), rel=1e-10)


def test_the_four_terms_are_declips():
    objective = make_objective(SMALL)
    batch = batch_for(objective)
    declip = create_objective(
        DeclipConfig(queue_size=40, simsiam_width=24, simsiam_bottleneck=12), objective.model
    ).double()
    declip.load_state_dict(objective.state_dict(), strict=False)
    actual, expected = losses(objective, batch), losses(declip, batch)
    assert actual.pop("dense") > 0
    assert actual == pytest.approx(expected, rel=1e-12)


def test_the_dense_term_sees_the_first_views_alone_but_for_dense_aug():
    for dense_aug in (False, True):
        objective = make_objective(without(SMALL, dense_aug=dense_aug))
        batch = batch_for(objective)
        other = batch.images.clone()
        other[1] = 255 - other[1]
        before, after = losses(objective, batch), losses(objective, batch._replace(images=other))
        assert (before["dense"] != after["dense"]) == dense_aug
        assert before["contrastive"] != after["contrastive"]


@pytest.mark.heavy
@pytest.mark.parametrize("field", ["patches_1", "word_tokens_1"])
def test_gradients_by_finite_differences(field):
    objective = make_objective(SMALL)
    features = objective.encode(batch_for(objective, 3))
    features = type(features)(*(None if item is None else item.detach() for item in features))

    def loss(item):
        return objective.compare(features._replace(**{field: item}), None).losses["dense"]

    assert torch.autograd.gradcheck(loss, getattr(features, field).clone().requires_grad_(), atol=1e-6)


def test_the_dense_scale_has_its_own_range_after_each_step():
    objective = make_objective(SMALL)
    batch = batch_for(objective)
    assert objective.logit_scale_dense.item() == pytest.approx(2.6593, abs=1e-4)
    for value, expected in ((2.6, 3.0), (5.0, 5.0), (7.0, 6.0)):
        _, features = objective("terms", batch)
        with torch.no_grad():
            objective.logit_scale_dense.fill_(value)
            objective.after_step(features, pairs_of([batch]))
        assert objective.logit_scale_dense.item() == expected


def test_published_weights_are_the_defaults():
    config = DefilipConfig()
    weights = (
        config.contrastive_weight,
        config.nn_weight,
        config.simsiam_weight,
        config.mlm_weight,
        config.dense_weight,
    )
    assert weights == (0.4, 0.2, 0.2, 0.2, 0.2)
    assert (config.dense_aug, config.top_k, config.dense_dim) == (False, 16, 256)


def test_dense_aug_needs_two_texts():
    with pytest.raises(ConfigError, match="--dense-aug compares two text views; give --declip-views both"):
        create_objective(DefilipConfig(dense_aug=True, declip_views="image"), create_model("tiny-test"))
