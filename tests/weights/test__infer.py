"""Architectures read off tensors: sizes of a preset and its heads, other image sizes, and what is no whole CLIP."""

import dataclasses

import pytest

from diptych.errors import WeightsError
from diptych.models import create_model, model_config
from diptych.weights._clip_names import NamingScheme, clip_rules
from diptych.weights._infer import config_from_shapes, visible_sizes
from diptych.weights._rename import to_theirs

from .test_formats import declip_shaped, resnet, small

SCHEMES = {
    "openai": NamingScheme(),
    "text": NamingScheme(text="text."),
    "paddle": NamingScheme(stacked=False, linear_transposed=True, scale_shape=1),
}


def state_of(config, scheme):
    return to_theirs(clip_rules(config, scheme), create_model(config).state_dict())


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=list(SCHEMES))
@pytest.mark.parametrize("make", [small, declip_shaped], ids=["small", "declip"])
def test_sizes_are_read_under_every_scheme(make, scheme):
    config = make()
    config = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, norm_tokens=True)
    )  # no tensor shows it
    inferred = config_from_shapes(state_of(config, scheme), scheme, "file", heads_of_64=True)
    assert inferred == dataclasses.replace(
        config, name="from-tensors", activation="gelu", preprocess=inferred.preprocess, logit_bias=None
    )
    with pytest.raises(WeightsError, match=r"file: these sizes are no architecture.*say which it is \(--model\)"):
        config_from_shapes(state_of(config, scheme), scheme, "file")


def test_a_resnets_blocks_and_grid_are_read():
    config = resnet()
    inferred = config_from_shapes(state_of(config, NamingScheme()), NamingScheme(), "file", heads_of_64=True)
    assert inferred.vision == config.vision


@pytest.mark.parametrize("name", ["ViT-Mini-8-64", "tiny-test", "tiny-test-resnet", "tiny-test-clipa"])
def test_a_preset_gives_its_heads_and_preprocessing(name):
    config = model_config(name)
    inferred = config_from_shapes(state_of(config, NamingScheme()), NamingScheme(), "file")
    assert inferred == config
    biased = config_from_shapes(
        state_of(dataclasses.replace(config, logit_bias=-1.0), NamingScheme()), NamingScheme(), "file"
    )
    assert biased == dataclasses.replace(config, logit_bias=0.0)


def test_a_preset_at_another_image_size_is_named_so():
    config = model_config("ViT-Mini-8-64")
    larger = dataclasses.replace(config, vision=dataclasses.replace(config.vision, image_size=96))
    inferred = config_from_shapes(state_of(larger, NamingScheme()), NamingScheme(), "file")
    assert inferred == dataclasses.replace(larger, name="ViT-Mini-8-64-at-96")


@pytest.mark.parametrize(
    "missing",
    ["visual.conv1.weight", "positional_embedding", "text_projection", "transformer.resblocks.1.ln_1.weight"],
)
def test_what_is_no_whole_clip_is_refused(missing):
    state = state_of(small(), NamingScheme())
    gone = [name for name in state if name.startswith(missing.removesuffix("ln_1.weight"))]
    for name in gone if "resblocks" in missing else [missing]:
        del state[name]
    with pytest.raises(WeightsError, match=r"file: no whole CLIP: .* is missing or has an odd shape"):
        config_from_shapes(state, NamingScheme(), "file", heads_of_64=True)


def test_layer_scale_shows_in_the_tensors():
    config = small(vision=dataclasses.replace(small().vision, layer_scale=0.1))
    inferred = config_from_shapes(state_of(config, NamingScheme()), NamingScheme(), "file", heads_of_64=True)
    assert inferred.vision.layer_scale is not None
    assert visible_sizes(inferred) == visible_sizes(config) != visible_sizes(small())


@pytest.mark.parametrize(
    ("branch", "changes", "seen"),
    [
        ("vision", {"image_size": 96}, False), ("vision", {"heads": 1}, False), ("vision", {"patch_size": 8}, True),
        ("vision", {"layers": 5}, True), ("vision", {"mlp_ratio": 2.0}, True), ("vision", {"norm_before": False}, True),
        ("text", {"heads": 1}, False), ("text", {"layers": 5}, True), ("text", {"context_length": 5}, True),
        ("text", {"vocab_size": 9}, True), ("text", {"projection_bias": True}, True), ("text", {"mlp_ratio": 2.0}, True),
        ("text", {"width": 64}, True), ("text", {"family": "siglip_text"}, True),
    ],
)  # fmt: skip
def test_sizes_are_what_shapes_show(branch, changes, seen):
    config = small()
    other = dataclasses.replace(config, **{branch: dataclasses.replace(getattr(config, branch), **changes)})
    assert (visible_sizes(other) != visible_sizes(config)) is seen
    assert visible_sizes(dataclasses.replace(config, embed_dim=8)) != visible_sizes(config)
