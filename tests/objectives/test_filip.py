"""FILIP: its scale and range, what it masks, and what it does at the edges."""

import math
from dataclasses import replace

import pytest
import torch

from diptych.devices import get_device
from diptych.models import create_model
from diptych.objectives import RunFacts
from diptych.objectives.filip import Filip, FilipConfig
from diptych.train.optimizer import OptimizerOptions
from diptych.train.step import create_step
from diptych.types import MaskedTokens, Wants

from .worlds import EXAMPLES, batch_for, make_objective


def step_of(name, lr=1e-3, wd=0.2):
    objective = make_objective(EXAMPLES[name])
    return create_step(objective, OptimizerOptions(lr=lr, wd=wd), get_device("cpu"))


def test_both_scales_stay_in_their_range_and_begin_as_published():
    step = step_of("filip-0")
    objective = step.layout.objective
    assert float(objective.logit_scale_dense.detach()) == pytest.approx(math.log(1 / 0.07))
    assert objective.logit_scale_dense.shape == (1,)
    step([batch_for(objective)])
    for scale in (objective.logit_scale_dense, objective.model.logit_scale):
        assert float(scale.detach()) == 3.0  # the first step brings it to the lower bound
        with torch.no_grad():
            scale.fill_(9.0)
    step([batch_for(objective)])
    assert float(objective.logit_scale_dense.detach()) == float(objective.model.logit_scale.detach()) == 6.0


def test_the_dense_scale_does_not_decay():
    step = step_of("filip-0")
    decay = {
        id(item): group["weight_decay"] for group in step.optimizer.param_groups for item in group["params"]
    }  # fmt: skip
    objective = step.layout.objective
    assert decay[id(objective.logit_scale_dense)] == 0
    assert decay[id(objective.maps.text.weight)] > 0


def test_the_strong_view_is_wanted_and_masks_only_under_compat():
    plain, published = (Filip(FilipConfig(compat=compat), create_model("tiny-test")) for compat in (False, True))
    assert plain.wants == Wants(images=("strong",)) and published.wants == Wants(images=("strong",), masked=True)
    assert not Filip.model_needs(plain.config).mask_token and Filip.model_needs(published.config).mask_token
    assert plain.validation_wants == Wants(images=("eval",))


def test_maps_are_256_wide_and_no_part_of_the_model():
    objective = Filip(FilipConfig(), create_model("tiny-test-resnet"))
    assert objective.maps.image.in_features == 256 and objective.maps.text.in_features == 32
    assert objective.maps.image.out_features == objective.maps.text.out_features == 256
    assert not [name for name, _ in objective.model.named_parameters() if "map" in name]


def test_a_weight_of_zero_leaves_pooled_features_alone_and_says_so(capsys):
    objective = make_objective(EXAMPLES["filip-0"])
    assert "pooled" in capsys.readouterr().err
    terms, _ = objective("terms", batch_for(objective))
    sum(terms.losses.values()).backward()
    assert not objective.model.text.projection.weight.grad.any()
    assert objective.model.text.layers[0].mlp_in.weight.grad.any()
    Filip(FilipConfig(filip_global_weight=0.1), create_model("tiny-test")).begin_run(RunFacts(64, 8))
    assert not capsys.readouterr().err


def test_compat_reads_masked_ids_over_the_whole_context():
    objective = make_objective(EXAMPLES["filip-2"])
    batch = batch_for(objective)
    features = objective.encode(batch)
    assert features.word_tokens.shape[1] == objective.model.config.text.context_length
    unmasked = objective.encode(batch._replace(masked=MaskedTokens(batch.tokens[0], batch.masked.targets)))
    assert not torch.allclose(features.word_tokens, unmasked.word_tokens)
    validated = objective.encode(batch._replace(masked=None))
    assert torch.equal(validated.word_tokens, unmasked.word_tokens)


def test_padding_of_the_batch_changes_nothing():
    objective = make_objective(EXAMPLES["filip-0"]).eval()
    batch = batch_for(objective)
    wider = batch._replace(tokens=torch.nn.functional.pad(batch.tokens, (0, 20)))
    losses = [objective("terms", item)[0].losses["dense"] for item in (batch, wider)]
    assert torch.allclose(*losses, rtol=1e-12)


@pytest.mark.parametrize("name", ["filip-0", "filip-2"])
@pytest.mark.parametrize("length", [1, 3])
def test_captions_of_a_word_or_of_nothing_have_a_finite_loss_and_gradient(name, length):
    objective = make_objective(EXAMPLES[name])
    batch = batch_for(objective, 4)
    batch = batch._replace(lengths=torch.full_like(batch.lengths, length))
    terms, _ = objective("terms", batch)
    loss = sum(terms.losses.values())
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert all(bool(torch.isfinite(item.grad).all()) for item in objective.parameters() if item.grad is not None)


def test_fewer_patches_than_selected_are_all_selected():
    objective = make_objective(EXAMPLES["filip-0"])  # 4 patches
    batch = batch_for(objective)
    losses = []
    for top_k in (4, 16, 200):
        objective.config = replace(objective.config, top_k=top_k)
        torch.manual_seed(0)
        losses.append(objective("terms", batch)[0].losses["dense"])
    assert torch.allclose(losses[1], losses[2], rtol=1e-12) and bool(torch.isfinite(losses[0]))
