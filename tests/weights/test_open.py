"""What opening checks: conflicts, sizes, missing tensors; and which file of a folder it opens."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from diptych import weights
from diptych.errors import ConfigError, OutputError, WeightsError
from diptych.models import create_model, model_config
from diptych.weights import _load, convert
from diptych.weights._resize import image_positions, text_positions

from .test_formats import random_model, small


@pytest.fixture
def openclip(tmp_path):
    """A folder of open_clip with a config that says GELU and a mean of one half."""
    config = model_config("ViT-Mini-8-64")
    preprocess = dataclasses.replace(config.preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    weights.save(tmp_path / "a.safetensors", random_model(dataclasses.replace(config, preprocess=preprocess)))
    convert(tmp_path / "a.safetensors", "openclip", tmp_path / "new")
    return tmp_path / "new"


def test_the_config_beside_the_file_says_everything(openclip):
    model = weights.load(openclip)
    assert model.config.name == "ViT-Mini-8-64"
    assert model.config.preprocess.mean == (0.5, 0.5, 0.5)
    # A preset's mean is only a default: what the weights say goes.
    model, _, preprocess = weights.create_model_and_transforms("ViT-Mini-8-64", openclip)
    assert model.image.std.flatten().tolist() == [0.5, 0.5, 0.5]
    assert preprocess.transform.size == 64


def test_a_bare_name_takes_the_activation_that_the_weights_certainly_have(openclip, tmp_path, capsys):
    values = json.loads((openclip / "open_clip_config.json").read_text())
    values["model_cfg"]["quick_gelu"] = True
    (openclip / "open_clip_config.json").write_text(json.dumps(values))
    assert weights.load(openclip).config.activation == "quickgelu"
    weights.save(tmp_path / "b.safetensors", weights.load(openclip))
    capsys.readouterr()
    for open_again in (
        lambda: weights.load(openclip, model="ViT-Mini-8-64"),
        lambda: weights.create("ViT-Mini-8-64", str(tmp_path / "b.safetensors")),
    ):
        assert open_again().config.activation == "quickgelu"
        said = capsys.readouterr().err
        assert "trained with quickgelu" in said
        assert "--model ViT-Mini-8-64" in said
        assert said.count("\n") == 1


def test_openais_own_file_under_a_bare_name_is_built_with_quickgelu(tmp_path, capsys):
    """``--model ViT-B-16 --pretrained ViT-B-16-OpenAI.pth``, as people's pages have it."""
    from diptych.weights._clip_names import NamingScheme, clip_rules
    from diptych.weights._rename import to_theirs

    model = random_model(model_config("ViT-Mini-8-64"))
    path = tmp_path / "ViT-Mini-OpenAI.pth"
    torch.save(to_theirs(clip_rules(model.config, NamingScheme()), model.state_dict()), path)
    assert weights.create("ViT-Mini-8-64", str(path)).config.activation == "quickgelu"
    assert "says OpenAI's weights" in capsys.readouterr().err


def test_a_name_that_says_quickgelu_contradicts_weights_of_gelu(tmp_path):
    model = create_model("ViT-B-32", dtype=torch.bfloat16)
    weights.save(tmp_path / "a.safetensors", model)
    with pytest.raises(
        WeightsError, match=r"trained with gelu .*--model ViT-B-32-quickgelu asks for.*use --model ViT-B-32,"
    ):
        weights.load(tmp_path / "a.safetensors", model="ViT-B-32-quickgelu")


def test_what_is_missing_or_left_over_is_named_unless_allowed(openclip):
    from safetensors.torch import load_file, save_file

    path = openclip / "open_clip_model.safetensors"
    tensors = load_file(path)
    gone = tensors.pop("visual.ln_post.bias")
    save_file(tensors | {"visual.extra": gone}, path)
    with pytest.raises(WeightsError, match=r"missing: visual\.ln_post\.bias; left over: visual\.extra") as caught:
        weights.load(openclip)
    assert "\n" not in caught.value.line
    model = weights.load(openclip, allow=["visual.ln_post.*", "visual.extra"])
    assert torch.equal(model.image.ln_post.bias, torch.zeros_like(gone))


@pytest.mark.parametrize("name", ["ViT-Mini-8-64", "emoji-64", "tiny-test-siglip"])
def test_another_image_size_resizes_the_positions(name, tmp_path, monkeypatch):
    config = model_config(name)
    larger = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, image_size=config.vision.image_size * 2)
    )
    weights.save(tmp_path / "a.safetensors", random_model(config))
    monkeypatch.setattr(_load, "model_config", lambda _: larger)
    model = weights.load(tmp_path / "a.safetensors", model="larger")
    assert model.config.vision.image_size == config.vision.image_size * 2
    side = model.config.vision.image_size
    assert model.encode_image(torch.zeros(1, 3, side, side, dtype=torch.uint8)).isfinite().all()


def test_positions_are_resized_as_open_clip_does():
    """The source's command loads a table of 8 x 8 positions into one of 7 x 7."""
    torch.manual_seed(0)
    table = torch.randn(65, 12)
    grid = table[1:].reshape(8, 8, 12).permute(2, 0, 1)[None]
    expected = F.interpolate(grid, size=(7, 7), mode="bicubic", antialias=True, align_corners=False)
    resized = image_positions(table, 8, 7, "vit")
    assert torch.equal(resized[0], table[0])
    assert torch.allclose(resized[1:].reshape(7, 7, 12), expected[0].permute(1, 2, 0), atol=1e-6)
    assert image_positions(table, 8, 8, "vit").shape == (65, 12)
    assert text_positions(torch.arange(8.0)[:, None], 4).flatten().tolist() == pytest.approx([0.5, 2.5, 4.5, 6.5])
    with pytest.raises(WeightsError, match="no square grid"):
        image_positions(table, 7, 8, "vit")


def test_the_documented_command_of_the_source_works(tmp_path):
    """--model ViT-B-32 with a 256-pixel checkpoint: the table of 65 rows becomes one of 50."""
    from diptych.weights._clip_names import NamingScheme, clip_rules
    from diptych.weights._rename import to_theirs

    model = create_model("ViT-B-32-256", dtype=torch.bfloat16)
    torch.save(
        to_theirs(clip_rules(model.config, NamingScheme()), model.state_dict()),
        tmp_path / "open_clip_pytorch_model.bin",
    )
    again = weights.create("ViT-B-32", str(tmp_path))
    assert again.image.positional_embedding.shape == (50, 768)
    assert again.config.name == "ViT-B-32"
    with pytest.raises(WeightsError, match=r"holds a 'ViT-B-32-256', which is not .*--model 'ViT-B-16'"):
        weights.create("ViT-B-16", str(tmp_path))


def test_heads_are_never_guessed(tmp_path):
    from diptych.weights._clip_names import NamingScheme, clip_rules
    from diptych.weights._rename import to_theirs

    model = random_model(small(activation="gelu"))
    torch.save(to_theirs(clip_rules(model.config, NamingScheme()), model.state_dict()), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="how many heads a tower has cannot be seen"):
        weights.load(tmp_path / "a.pt")


def test_a_folder_with_one_weight_file_means_that_file(tmp_path):
    weights.save(tmp_path / "any-name.safetensors", random_model(small()))
    assert weights.load(tmp_path).config.name == "small"
    weights.save(tmp_path / "another.safetensors", random_model(small()))
    with pytest.raises(WeightsError, match=r"2 weight files.*another\.safetensors.*any-name\.safetensors"):
        weights.load(tmp_path)


def test_numbers_become_what_is_asked(tmp_path):
    weights.save(tmp_path / "a.safetensors", random_model(small(), torch.bfloat16))
    expected = ("fp32", torch.float32), ("bf16", torch.bfloat16), ("file", torch.bfloat16), ("fp64", torch.float64)
    for precision, dtype in expected:
        model = weights.load(tmp_path / "a.safetensors", precision=precision)
        # The mean of the pixels is exact whatever the weights are: in bf16 it would shift the images.
        exact = torch.promote_types(dtype, torch.float32)
        assert torch.equal(model.image.mean.flatten(), torch.tensor(model.config.preprocess.mean, dtype=exact))
        assert torch.equal(model.image.std.flatten(), torch.tensor(model.config.preprocess.std, dtype=exact))
        assert next(model.parameters()).dtype == dtype
        assert model.encode_image(torch.zeros(1, 3, 48, 48, dtype=torch.uint8)).dtype == dtype
    with pytest.raises(ConfigError, match="unknown precision"):
        weights.load(tmp_path / "a.safetensors", precision="fp8")


def test_a_taken_folder_is_left_alone(tmp_path):
    weights.save(tmp_path / "a.safetensors", random_model(small()))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("x")
    with pytest.raises(OutputError, match="already holds something"):
        convert(tmp_path / "a.safetensors", "hf", tmp_path / "new")
    assert (tmp_path / "new" / "mine").read_text() == "x"
    with pytest.raises(ConfigError, match="Did you mean 'openclip'"):
        convert(tmp_path / "a.safetensors", "openclp", tmp_path / "other")


def test_a_wrong_table_is_caught_before_anything_is_written(tmp_path, monkeypatch):
    """The proof can fail: with a writer that mixes up two tensors, nothing is left behind."""
    from diptych.weights.openclip import OpenClip

    whole = OpenClip.write

    def mixed(self, folder, config, tensors):
        first, last = "visual.ln_pre.weight", "visual.ln_post.weight"
        return whole(self, folder, config, {**tensors, first: tensors[last], last: tensors[first]})

    monkeypatch.setattr(OpenClip, "write", mixed)
    weights.save(tmp_path / "a.safetensors", random_model(small()))
    with pytest.raises(WeightsError, match="not written"):
        convert(tmp_path / "a.safetensors", "openclip", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
