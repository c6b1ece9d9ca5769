"""Every architecture has exactly the parameters that its authors count."""

import pytest

from diptych import config as options
from diptych.errors import ConfigError
from diptych.models import create_model, list_models, model_config, model_config_from_dict

EXACT = {
    "ViT-bigG-14": 2_539_567_105,
    "ViT-g-14": 1_366_678_273,
    "ViT-H-14": 986_109_441,
    "ViT-L-14": 427_616_513,
    "ViT-B-16": 149_620_737,
    "ViT-B-32": 151_277_313,
    "ViT-B-32-256": 151_288_833,
    "ViT-H-14-378-quickgelu": 986_714_881,
    "ViT-H-14-quickgelu": 986_109_441,
    "ViT-L-14-quickgelu": 427_616_513,
    "ViT-B-16-quickgelu": 149_620_737,
    # OpenAI's nine: computed from the released state dicts' shapes (SOURCES: 102.01 M for RN50).
    "RN50": 102_007_137,
    "RN101": 119_688_033,
    "RN50x4": 178_300_601,
    "RN50x16": 290_979_217,
    "RN50x64": 623_258_305,
    "ViT-L-14-336": 427_944_193,
}


@pytest.mark.parametrize("name", sorted(EXACT))
def test_parameter_counts_are_exact(name):
    model = create_model(name, device="meta")
    assert sum(item.numel() for item in model.parameters()) == EXACT[name]


@pytest.mark.parametrize("name", list_models())
def test_every_preset_builds_and_its_config_goes_through_toml(name, tmp_path):
    config = model_config(name)
    path = tmp_path / "model.toml"
    path.write_text(options.to_toml(config.to_dict()))
    assert model_config_from_dict(options.read_toml(path)) == config
    create_model(config, device="meta")


def test_openais_names_mean_quickgelu():
    for name, ours in (("ViT-B/32", "ViT-B-32-quickgelu"), ("ViT-L/14@336px", "ViT-L-14-336-quickgelu")):
        assert model_config(name) == model_config(ours)
        assert model_config(name).activation == "quickgelu"


def test_an_unknown_architecture_gets_the_nearest_name():
    with pytest.raises(ConfigError, match="Did you mean 'ViT-B-32'"):
        model_config("ViT-B32")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"embed": 3}, "unknown key 'embed'"),
        ({"vision": {"family": "swin"}}, "unknown family 'swin'.*Known: resnet, siglip, vit"),
        (
            {"vision": {"image_size": 33, "patch_size": 16, "width": 32, "layers": 1, "heads": 2}},
            "no multiple of patch_size",
        ),
        (
            {"vision": {"image_size": 32, "patch_size": 16, "width": 33, "layers": 1, "heads": 2}},
            "no multiple of its 2 heads",
        ),
        ({"text": {"width": 32, "layers": 1}}, "heads"),
        ({"activation": "relu"}, "expected one of 'gelu', 'quickgelu'"),
    ],
)
def test_a_wrong_config_is_one_line(change, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        model_config_from_dict(model_config("tiny-test").to_dict() | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "width"),
    [("declip-ViT-B-32", 512), ("declip-ViT-B-32-filip", 768), ("declip-ViT-B-32-88m", 3072), ("declip-RN50", 1024)],
)
def test_declips_towers_are_clips_with_its_own_details(name, width):
    config = model_config(name)
    base = model_config("RN50" if "RN50" in name else "ViT-B-32")
    assert (config.embed_dim, config.activation) == (width, "quickgelu")
    assert (config.text.projection_bias, config.text.vocab_size, config.text.mask_id) == (True, 49409, 49408)
    assert (config.preprocess.resize_to, config.preprocess.interpolation) == (256, "bilinear")
    assert config.vision.width == base.vision.width and config.vision.layers == base.vision.layers
    assert getattr(config.vision, "norm_tokens", False) is False
