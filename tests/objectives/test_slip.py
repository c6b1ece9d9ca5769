"""SLIP: which views each loss sees, how its options act, what --compat brings back, and the runs that it refuses."""

import math
import re

import pytest
import torch

from diptych.errors import ConfigError
from diptych.models import create_model
from diptych.objectives import RunFacts
from diptych.objectives._heads import GlobalBatchNorm, LocalBatchNorm
from diptych.objectives.clip import Clip, ClipConfig
from diptych.objectives.slip import Slip, SlipConfig

from .batch_references import FROM_BATCH
from .test_objectives import make_step
from .worlds import EXAMPLES, batch_for, make_objective, without


def losses(objective, batch):
    return objective("terms", batch)[0].losses


def test_the_base_view_is_compared_with_captions_and_the_strong_views_with_each_other():
    objective = make_objective(EXAMPLES["slip-0"])
    batch = batch_for(objective)
    before = losses(objective, batch)
    assert objective.wants.images == ("crop", "strong", "strong")
    for view in range(3):
        images = batch.images.clone()
        images[view] = 255 - images[view]
        after = losses(objective, batch._replace(images=images))
        assert (after["contrastive"].item() == before["contrastive"].item()) == (view > 0)
        assert (after["ssl"].item() == before["ssl"].item()) == (view == 0)


@pytest.mark.parametrize("name", ["slip-0", "slip-1", "slip-2", "slip-3"])
def test_fp32_is_near_the_reference_and_validation_is_clips(name):
    objective = make_objective(EXAMPLES[name], torch.float32)
    for module in objective.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    batch = batch_for(objective, 8)
    actual = losses(objective, batch)
    with torch.no_grad():
        image = objective.model.image(batch.images[0]).pooled.numpy()
        text = objective.model.text(batch.tokens[0], batch.lengths[0]).pooled.numpy()
        validation = objective.eval()("validation", batch).losses
        clip = Clip(ClipConfig(), objective.model)("validation", batch).losses
    expected = FROM_BATCH["slip"](objective, batch, image, text)
    # Two norms and a temperature of 0.1 enlarge what a CPU's products round: 2.1e-5 was seen.
    assert {key: item.item() for key, item in actual.items()} == pytest.approx(expected, rel=5e-5)
    assert validation.keys() == {"contrastive"} and torch.allclose(validation["contrastive"], clip["contrastive"])


def test_gradients_by_finite_differences():
    objective = make_objective(EXAMPLES["slip-0"])
    features = objective.encode(batch_for(objective, 4))

    def loss(first, second):
        return objective.compare(features._replace(first=first, second=second), None).losses["ssl"]

    states = [features.first.detach().requires_grad_(), features.second.detach().requires_grad_()]
    assert torch.autograd.gradcheck(loss, states, atol=1e-6, nondet_tol=0)


def test_the_head_has_the_published_widths():
    head = Slip(SlipConfig(), create_model("tiny-test")).head
    widths = [(layer.in_features, layer.out_features) for layer in head if isinstance(layer, torch.nn.Linear)]
    width = create_model("tiny-test").config.vision.width
    assert widths == [(width, 4096), (4096, 4096), (4096, 256)]
    assert [type(layer) for layer in head[1::3]] == [GlobalBatchNorm, GlobalBatchNorm]


@pytest.mark.parametrize(("compat", "most"), [(False, math.log(100)), (True, 6.0)])
def test_the_scale_lies_in_the_familys_range_after_each_step(compat, most):
    EXAMPLES["slip-x"] = without(EXAMPLES["slip-0"], compat=compat)
    try:
        step = make_step("slip-x")
    finally:
        del EXAMPLES["slip-x"]
    objective = step.layout.objective
    step([batch_for(objective)])
    assert objective.model.logit_scale.item() == 3
    with torch.no_grad():
        objective.model.logit_scale.fill_(7)
    step([batch_for(objective)])
    assert objective.model.logit_scale.item() == pytest.approx(most)


def test_compat_normalizes_each_process_by_itself():
    head = make_objective(without(EXAMPLES["slip-0"], compat=True)).head
    assert [type(layer) for layer in head[1::3]] == [LocalBatchNorm, LocalBatchNorm]


def test_too_few_pairs_to_normalize_over_are_refused_before_the_run():
    for norm, pairs, fails in (("batch", 31, True), ("batch", 32, False), ("layer", 8, False), ("none", 8, False)):
        objective = make_objective(without(EXAMPLES["slip-0"], ssl_norm=norm))
        facts = RunFacts(records=640, epochs=1, pairs=pairs, processes=4)
        if not fails:
            objective.begin_run(facts)
            continue
        message = (
            "--ssl-norm batch: 31 pairs of a process and step are too few to normalize over, expected at least 32; "
        )
        with pytest.raises(ConfigError, match=re.escape(message) + ".*--ssl-norm layer"):
            objective.begin_run(facts)


def test_a_locked_image_tower_is_refused():
    with pytest.raises(ConfigError, match="--lock-image locks"):
        Slip(SlipConfig(), create_model("tiny-test").lock(image=True))


def test_building_it_leaves_the_model_as_it_was():
    model = create_model("tiny-test").train()
    Slip(SlipConfig(), model)
    assert model.training and model.image.training
