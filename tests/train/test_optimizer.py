"""Which parameters decay, and the learning rate of each by tower and depth; AdamW's options reach AdamW."""

import dataclasses

import pytest
import torch

from diptych.devices import get_device
from diptych.errors import ConfigError
from diptych.models import create_model
from diptych.objectives import create_objective
from diptych.objectives.clip import ClipConfig
from diptych.train.optimizer import OptimizerOptions, create_optimizer, decays, depths


def optimizer_for(options, model="tiny-test", lock=False):
    objective = create_objective(ClipConfig(), create_model(model).lock(lock, lock))
    named = [(name, item) for name, item in objective.named_parameters() if item.requires_grad]
    return create_optimizer(named, objective.model, options, get_device("cpu")), named


def groups_by_name(options, model="tiny-test"):
    optimizer, named = optimizer_for(options, model)
    names = {id(item): name.removeprefix("model.") for name, item in named}
    return {names[id(item)]: group for group in optimizer.param_groups for item in group["params"]}


def test_only_matrices_decay():
    decaying = {name for name, item in create_model("tiny-test").named_parameters() if decays(item)}
    assert "logit_scale" not in decaying
    assert "image.class_embedding" not in decaying
    assert "image.layers.0.ln_1.weight" not in decaying
    assert "text.layers.0.mlp_in.bias" not in decaying
    assert {"text.token_embedding.weight", "image.positional_embedding", "image.patch_embedding.weight"} <= decaying


def test_without_options_of_towers_there_are_two_groups():
    optimizer, named = optimizer_for(OptimizerOptions(lr=1e-3, wd=0.3))
    assert sorted(group["weight_decay"] for group in optimizer.param_groups) == [0.0, 0.3]
    assert {group["peak_lr"] for group in optimizer.param_groups} == {1e-3}
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(named)


def test_adamw_gets_its_options():
    optimizer, _ = optimizer_for(OptimizerOptions(beta1=0.7, beta2=0.8, eps=1e-3))
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert group["betas"] == (0.7, 0.8)
        assert group["eps"] == 1e-3


@pytest.mark.parametrize(("model", "beta2", "eps"), [("tiny-test", 0.98, 1e-6), ("tiny-test-resnet", 0.999, 1e-8)])
def test_what_is_not_given_is_clips_for_the_kind_of_image_tower(model, beta2, eps):
    optimizer, _ = optimizer_for(OptimizerOptions(), model)
    assert {(*group["betas"], group["eps"]) for group in optimizer.param_groups} == {(0.9, beta2, eps)}


def test_the_specific_option_wins_over_the_general_one():
    groups = groups_by_name(OptimizerOptions(lr=1.0, wd=0.1, visual_lr=0.0, text_lr=3.0, visual_wd=0.4, text_wd=0.0))
    image, text = groups["image.patch_embedding.weight"], groups["text.token_embedding.weight"]
    assert (image["peak_lr"], image["weight_decay"]) == (0.0, 0.4)
    assert (text["peak_lr"], text["weight_decay"]) == (3.0, 0.0)
    assert groups["image.ln_post.bias"]["weight_decay"] == 0.0
    assert (groups["logit_scale"]["peak_lr"], groups["logit_scale"]["weight_decay"]) == (1.0, 0.0)


def test_layers_further_down_learn_more_slowly():
    groups = groups_by_name(OptimizerOptions(lr=1.0, image_layer_decay=0.5))
    depth = len(create_model("tiny-test").image.blocks())
    assert groups["image.projection.weight"]["peak_lr"] == 1.0
    assert groups[f"image.layers.{depth - 1}.ln_1.weight"]["peak_lr"] == 0.5
    assert groups["image.layers.0.ln_1.weight"]["peak_lr"] == 0.5**depth
    assert groups["image.patch_embedding.weight"]["peak_lr"] == 0.5 ** (depth + 1)
    assert groups["text.token_embedding.weight"]["peak_lr"] == 1.0


def test_layer_decay_of_texts_is_its_own():
    groups = groups_by_name(OptimizerOptions(lr=1.0, text_lr=2.0, text_layer_decay=0.5))
    depth = len(create_model("tiny-test").text.blocks())
    assert groups["text.token_embedding.weight"]["peak_lr"] == 2.0 * 0.5 ** (depth + 1)
    assert groups["text.projection.weight"]["peak_lr"] == 2.0
    assert groups["image.patch_embedding.weight"]["peak_lr"] == 1.0


@pytest.mark.parametrize("preset", ["tiny-test", "tiny-test-resnet", "tiny-test-siglip", "tiny-test-clipa"])
def test_every_parameter_has_a_depth(preset):
    model = create_model(preset)
    for tower in (model.image, model.text):
        numbers, blocks = depths(tower), len(tower.blocks())
        assert numbers.keys() == {name for name, _ in tower.named_parameters()}
        assert {0, *range(1, blocks + 1), blocks + 1} >= set(numbers.values()) >= {0, *range(1, blocks + 1)}


def test_locked_parameters_are_left_out():
    objective = create_objective(ClipConfig(), create_model("tiny-test").lock(image=True))
    named = [(name, item) for name, item in objective.named_parameters() if item.requires_grad]
    assert not [name for name, _ in named if name.startswith("model.image")]
    optimizer = create_optimizer(named, objective.model, OptimizerOptions(), get_device("cpu"))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(named)


@pytest.mark.parametrize("values", [{"visual_lr": 1e-4}, {"visual_wd": 0.1}, {"image_layer_decay": 0.5}])
def test_rates_of_a_locked_tower_are_refused(values):
    objective = create_objective(ClipConfig(), create_model("tiny-test").lock(image=True))
    named = [(name, item) for name, item in objective.named_parameters() if item.requires_grad]
    (option,) = values
    with pytest.raises(ConfigError, match="--" + option.replace("_", "-")):
        create_optimizer(named, objective.model, OptimizerOptions(**values), get_device("cpu"))
    create_optimizer(named, objective.model, OptimizerOptions(text_lr=1e-4), get_device("cpu"))


def test_nothing_to_train_is_an_error():
    model = create_model("tiny-test")
    with pytest.raises(ConfigError, match="locked"):
        create_optimizer([], model, OptimizerOptions(), get_device("cpu"))


@pytest.mark.parametrize("fused", [True, False])
def test_the_optimizer_is_fused_where_the_device_has_it(fused):
    device = get_device("cpu")
    device.abilities = dataclasses.replace(device.abilities, fused_adamw=fused)
    objective = create_objective(ClipConfig(), create_model("tiny-test"))
    optimizer = create_optimizer(objective.named_parameters(), objective.model, OptimizerOptions(), device)
    assert {bool(group["fused"]) for group in optimizer.param_groups} == {fused}
