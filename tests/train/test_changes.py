"""Changes to a model: which options ask for which, in what order, and that what is exported can be read back."""

import dataclasses

import pytest
import torch
from torch import nn

from diptych import weights
from diptych.errors import ConfigError, WeightsError
from diptych.models import create_model, model_config
from diptych.train.changes import CHANGES, ModelChange, changes_of, exported
from diptych.train.model_options import ModelOptions


class MergedAdapters(ModelChange):
    """Low-rank adapters on every Linear of the text tower, merged when exported: what a change with parameters looks like."""

    def applies(self, options):
        return True

    def after_weights(self, model, options):
        for name, linear in model.text.linears().items():
            parent, _, own = name.rpartition(".")
            setattr(model.text.get_submodule(parent), own, Adapted(linear))

    def export(self, state):
        result = {}
        for name, value in state.items():
            if name.endswith((".up", ".down")):
                continue
            stem = name.rpartition(".base.weight")[0]
            merged = value + state[f"{stem}.up"] @ state[f"{stem}.down"] if stem else value
            result[name.replace(".base.", ".")] = merged
        return result


class Adapted(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base
        self.up = nn.Parameter(torch.randn(base.out_features, 2) / 10)
        self.down = nn.Parameter(torch.randn(2, base.in_features) / 10)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


def names(options, resumed=False):
    return [type(change).__name__ for change in changes_of(options, resumed)]


def test_nothing_is_changed_by_default():
    assert names(ModelOptions()) == []


def test_changes_come_in_their_order():
    options = ModelOptions(
        pretrained="x", force_image_size=64, lock_text=True, force_patch_dropout=0.5, grad_checkpointing=True, torchcompile=True,
        force_context_length=20, force_quick_gelu=True, image_mean=(0.5,), lock_patch_embedding=True,
    )  # fmt: skip
    assert names(options) == [
        "StretchedPositions", "StretchedContext", "QuickGelu", "OwnPreprocess", "Locks", "LockedPatchEmbedding",
        "PatchDropout", "ActivationCheckpointing", "CompiledBlocks",
    ]  # fmt: skip
    assert names(options) == [type(change).__name__ for change in CHANGES]


IMPOSSIBLE = [
    ({"lock_image": True, "lock_text": True}, "nothing to train"),
    ({"cache_features": True}, "--cache-features needs --lock-image"),
    ({"force_patch_dropout": 1.0}, "less than 1"),
    ({"lock_image_unlocked_groups": 1}, "--lock-image-unlocked-groups goes with --lock-image"),
    ({"lock_text_unlocked_layers": 1}, "--lock-text-unlocked-layers goes with --lock-text"),
    ({"cache_features": True, "lock_image": True, "lock_image_unlocked_groups": 1}, "--cache-features needs"),
    ({"image_mean": (0.5, 0.5)}, "three numbers, or one"),
    ({"image_std": (0.5, 0.5, 0.0)}, "above 0"),
    ({"force_patch_dropout": 0.5, "lock_image": True, "pretrained": "x"}, "tower that is trained"),
    ({"lock_patch_embedding": True, "lock_image": True, "pretrained": "x"}, "locks the whole image tower"),
]


@pytest.mark.parametrize(("values", "message"), IMPOSSIBLE)
def test_options_that_cannot_be_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        changes_of(ModelOptions(**values), resumed=False)


def test_locking_random_weights_is_said(capsys):
    changes_of(ModelOptions(lock_image=True), resumed=False)
    assert "random weights" in capsys.readouterr().err
    changes_of(ModelOptions(lock_image=True), resumed=True)
    changes_of(ModelOptions(lock_image=True, pretrained="x"), resumed=False)
    assert "random weights" not in capsys.readouterr().err


def changed(options, model="tiny-test"):
    config = model_config(model)
    changes = changes_of(options, resumed=False)
    for change in changes:
        config = change.before_weights(config, options)
    built = create_model(config)
    for change in changes:
        change.after_weights(built, options)
    return built, changes


def test_positions_are_stretched_to_the_image_size():
    model, _ = changed(ModelOptions(force_image_size=64))
    assert model.config.vision.image_size == 64
    assert len(model.image.positional_embedding) == (64 // model.config.vision.patch_size) ** 2 + 1
    assert model.encode_image(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, model.config.embed_dim)


def test_a_resize_before_the_crop_is_scaled_with_it():
    config = model_config("tiny-test")
    config = dataclasses.replace(config, preprocess=dataclasses.replace(config.preprocess, resize_to=40))
    options = ModelOptions(force_image_size=64)
    (change,) = changes_of(options, resumed=False)
    assert change.before_weights(config, options).preprocess.resize_to == 80


def test_an_image_size_that_patches_do_not_tile_is_refused():
    with pytest.raises(ConfigError, match="--force-image-size 33"):
        changed(ModelOptions(force_image_size=33))


def test_pretrained_positions_are_stretched(tmp_path):
    model = create_model("tiny-test")
    weights.save(tmp_path / "model.safetensors", model)
    config, options = model_config("tiny-test"), ModelOptions(force_image_size=64)
    (change,) = changes_of(options, resumed=False)
    loaded = weights.create(change.before_weights(config, options), str(tmp_path / "model.safetensors"))
    assert loaded.config.vision.image_size == 64
    assert torch.equal(loaded.image.positional_embedding[0], model.image.positional_embedding[0])
    assert torch.equal(loaded.image.projection.weight, model.image.projection.weight)


def test_patch_dropout_needs_patches():
    model, _ = changed(ModelOptions(force_patch_dropout=0.25))
    assert model.image.patch_dropout == 0.25
    with pytest.raises(ConfigError, match="needs a ViT"):
        changed(ModelOptions(force_patch_dropout=0.25), "tiny-test-resnet")


@pytest.mark.parametrize("model", ["tiny-test", "tiny-test-siglip"])
def test_a_locked_patch_embedding_is_all_that_is_locked(model):
    model, _ = changed(ModelOptions(lock_patch_embedding=True), model)
    locked = {name for name, item in model.named_parameters() if not item.requires_grad}
    assert locked == {f"image.patch_embedding.{leaf}" for leaf, _ in model.image.patch_embedding.named_parameters()}


def test_a_resnet_has_no_patch_embedding_to_lock():
    with pytest.raises(ConfigError, match="needs a ViT"):
        changed(ModelOptions(lock_patch_embedding=True), "tiny-test-resnet")


def test_activation_checkpointing_is_switched_on_in_both_towers():
    model, _ = changed(ModelOptions(grad_checkpointing=True))
    assert model.image.checkpointing and model.text.checkpointing


def test_locked_towers_have_no_gradient_and_stay_in_evaluation_mode():
    model, _ = changed(ModelOptions(lock_image=True, pretrained="x"))
    model.train()
    assert not model.image.training and model.text.training
    assert not [item for item in model.image.parameters() if item.requires_grad]


def test_adapters_are_merged_and_the_file_is_read_back(tmp_path):
    torch.manual_seed(0)
    model, change = create_model("tiny-test").eval(), MergedAdapters()
    change.after_weights(model, ModelOptions())
    tokens = torch.tensor([[5, 6, 49407, 0]])
    path = tmp_path / "model.safetensors"
    weights.save_state(path, model.config, exported((change,), model.state_dict()), {})
    read = weights.load(path)
    with torch.no_grad():
        assert torch.allclose(read.encode_text(tokens), model.encode_text(tokens), atol=1e-5)


def test_a_state_with_names_of_its_own_is_refused_when_written(tmp_path):
    model = create_model("tiny-test")
    MergedAdapters().after_weights(model, ModelOptions())
    with pytest.raises(WeightsError, match="base"):
        weights.save_state(tmp_path / "model.safetensors", model.config, model.state_dict(), {})
    assert not (tmp_path / "model.safetensors").exists()


def test_exports_are_undone_from_the_last_to_the_first():
    class Suffix(ModelChange):
        def __init__(self, text):
            self.text = text

        def export(self, state):
            return {name + self.text: value for name, value in state.items()}

    assert list(exported((Suffix("a"), Suffix("b")), {"x": torch.zeros(1)})) == ["xba"]


def test_another_context_stretches_the_positions_of_weights(tmp_path):
    weights.save(tmp_path / "m.safetensors", create_model("tiny-test"))
    options = ModelOptions(force_context_length=12)
    (change,) = changes_of(options, resumed=False)
    config = change.before_weights(model_config("tiny-test"), options)
    model = weights.create(config, str(tmp_path / "m.safetensors"))
    assert model.text.positional_embedding.shape[0] == config.text.context_length == 12
    with pytest.raises(ConfigError, match="at least 3"):
        change.before_weights(config, ModelOptions(force_context_length=2))


def test_quick_gelu_is_built_and_never_into_weights_of_another(tmp_path):
    options = ModelOptions(force_quick_gelu=True)
    assert changed(options)[0].config.activation == "quickgelu"
    own = dataclasses.replace(model_config("tiny-test").text, activation="gelu_tanh")
    (change,) = changes_of(options, resumed=False)
    with pytest.raises(ConfigError, match="has gelu_tanh"):
        change.before_weights(dataclasses.replace(model_config("tiny-test"), text=own), options)
    weights.save(tmp_path / "m.safetensors", create_model("tiny-test"))
    (change,) = changes_of(options, resumed=False)
    model = weights.create(change.before_weights(model_config("tiny-test"), options), str(tmp_path / "m.safetensors"))
    with pytest.raises(ConfigError, match="was trained with gelu"):
        change.after_weights(model, options)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_last_groups_of_a_locked_tower_may_be_trained():
    model = changed(ModelOptions(lock_image=True, lock_image_unlocked_groups=2))[0]
    last = len(model.image.blocks()) - 1
    image = {name.removeprefix("image.") for name in trained(model) if name.startswith("image.")}
    assert {"projection.weight", "ln_post.weight"} < image
    assert all(name.startswith(("projection.", "ln_post.", f"layers.{last}.")) for name in image)
    assert {name for name in trained(model) if name.startswith("text.")} == {
        name for name, _ in model.named_parameters() if name.startswith("text.")
    }


def test_the_last_groups_of_a_locked_text_tower_may_be_trained():
    model = changed(ModelOptions(lock_text=True, lock_text_unlocked_layers=1))[0]
    assert {name for name in trained(model) if name.startswith("text.")} == {"text.projection.weight"}
    with pytest.raises(ConfigError, match="lock nothing"):
        changed(ModelOptions(lock_text=True, lock_text_unlocked_layers=99))[0]
    with pytest.raises(ConfigError, match="is a ResNet"):
        changed(ModelOptions(lock_image=True, lock_image_unlocked_groups=1), "tiny-test-resnet")[0]
