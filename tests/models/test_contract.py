"""The contract of towers, held by every family: one meaning of ``Encoded``, linears by name, needs, prefixes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn

from diptych.errors import ConfigError
from diptych.models import (
    TOWERS,
    ImageTower,
    ModelNeeds,
    SharedPrefixes,
    TextTower,
    VisionConfig,
    create_model,
    lengths_of,
    list_models,
    model_config,
    model_config_from_dict,
)
from diptych.types import Encoded

# A preset of every family, and how the pooled feature comes of the state.
TOWER_CASES = {
    "vit": ("tiny-test", lambda tower: tower.projection),
    "vit, patches": ("tiny-test-clipa", lambda tower: tower.projection),
    "siglip": ("tiny-test-siglip", lambda tower: nn.Identity()),
    "resnet": ("tiny-test-resnet", lambda tower: tower.pool.out),
    "transformer": ("tiny-test", lambda tower: tower.projection),
    "siglip_text": ("tiny-test-siglip", lambda tower: tower.projection),
    "siglip_text, clipa": ("tiny-test-clipa", lambda tower: tower.projection),
}


def built(case):
    """The tower in fp64, its inputs, and its projection."""
    preset, projection = TOWER_CASES[case]
    torch.manual_seed(0)
    model = create_model(preset, dtype=torch.float64).eval()
    if issubclass(TOWERS.get(case.split(",")[0]), ImageTower):
        side = model.config.vision.image_size
        pixels = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
        return model.image, (pixels,), projection(model.image)
    ids = torch.randint(1, 900, (3, 9))
    return model.text, (ids, torch.tensor([9, 4, 6])), projection(model.text)


def test_every_family_is_in_the_table():
    assert {case.split(",")[0] for case in TOWER_CASES} == set(TOWERS.names())


@pytest.mark.parametrize("case", TOWER_CASES)
def test_the_projection_of_the_state_is_the_feature(case):
    tower, inputs, projection = built(case)
    for return_tokens in (False, True):
        encoded = tower(*inputs, return_tokens=return_tokens)
        assert encoded.pooled.shape == (3, tower.config.embed_dim)
        assert torch.allclose(projection(encoded.state), encoded.pooled, rtol=0, atol=1e-12)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", TOWER_CASES)
def test_asking_for_tokens_changes_no_feature(case, training):
    tower, inputs, _ = built(case)
    tower.train(training)
    plain, whole = tower(*inputs), tower(*inputs, return_tokens=True)
    assert plain.tokens is None and plain.mask is None
    assert torch.allclose(plain.pooled, whole.pooled, rtol=0, atol=1e-12)
    assert torch.allclose(plain.state, whole.state, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", TOWER_CASES)
def test_tokens_go_into_the_embedding_one_by_one(case):
    tower, inputs, _ = built(case)
    tokens, mask = tower(*inputs, return_tokens=True)[2:]
    assert tokens.shape[:2] == mask.shape and mask.dtype == torch.bool
    projected = tower.project_tokens(tokens)
    assert projected.shape == (*mask.shape, tower.config.embed_dim)
    assert torch.allclose(tower.project_tokens(tokens[:1, 1:2]), projected[:1, 1:2], rtol=0, atol=1e-12)
    if isinstance(tower, ImageTower):
        vision = tower.config.vision
        stride = getattr(vision, "patch_size", 32)
        assert mask.shape[1] == (vision.image_size // stride) ** 2 and bool(mask.all())  # patches, and no class token
    else:
        assert mask.sum(dim=1).tolist() == inputs[1].tolist()


@pytest.mark.parametrize("case", [case for case in TOWER_CASES if case != "resnet"])
def test_tokens_are_normed_and_not_projected(case):
    """Mean 0 and variance 1 over the channels: a norm that was just initialized is the last thing that touched them."""
    tower, inputs, _ = built(case)
    tokens = tower(*inputs, return_tokens=True).tokens
    assert torch.allclose(tokens.mean(dim=-1), torch.zeros(1, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(tokens.var(dim=-1, unbiased=False), torch.ones(1, dtype=torch.float64), atol=1e-2)


def test_the_pooled_text_token_is_one_of_the_tokens():
    tower, (ids, lengths), _ = built("transformer")
    encoded = tower(ids, lengths, return_tokens=True)
    assert torch.equal(encoded.tokens[torch.arange(3), lengths - 1], encoded.state)
    assert torch.allclose(
        tower.project_tokens(encoded.tokens)[torch.arange(3), lengths - 1], encoded.pooled, atol=1e-12
    )


@pytest.mark.parametrize("case", TOWER_CASES)
def test_linears_are_all_linears_by_their_names(case):
    tower, _, _ = built(case)
    linears = tower.linears()
    assert linears and all(tower.get_submodule(name) is linear for name, linear in linears.items())
    assert set(map(id, linears.values())) == {id(item) for item in tower.modules() if isinstance(item, nn.Linear)}
    weights = {name.removesuffix(".weight") for name, item in tower.named_parameters() if item.ndim == 2}
    tables = {"token_embedding", "positional_embedding", "pool.positional_embedding"}
    assert set(linears) == weights - tables


@pytest.mark.parametrize("case", TOWER_CASES)
def test_checkpointed_activations_are_computed_again(case):
    tower, inputs, _ = built(case)
    tower.train()
    counts = []
    for on in (False, True):
        tower.checkpoint_activations(on)
        calls = []
        handle = tower.blocks()[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        tower(*inputs).pooled.sum().backward()
        handle.remove()
        counts.append(len(calls))
    assert counts == [1, 2]


@pytest.mark.parametrize("case", TOWER_CASES)
def test_seeds_are_taken_by_every_family(case):
    tower, inputs, _ = built(case)
    assert torch.equal(tower(*inputs, seeds=torch.arange(3)).pooled, tower(*inputs).pooled)


@pytest.mark.parametrize("family", [name for name in TOWERS.names() if issubclass(TOWERS.get(name), TextTower)])
def test_a_prefix_is_shared_or_refused(family):
    tower, (ids, lengths), _ = built(family)
    ids[:, :3] = ids[0, :3]
    prefix = SharedPrefixes(torch.zeros(3, dtype=torch.int64), torch.full((3,), 3))
    if not tower.shares_prefixes:
        with pytest.raises(ConfigError, match="none can be shared"):
            tower(ids, lengths, prefix=prefix)
        return
    whole = tower(ids, lengths)
    for return_tokens in (False, True):
        shared = tower(ids, lengths, return_tokens, prefix=prefix)
        assert torch.allclose(shared.pooled, whole.pooled, rtol=0, atol=1e-12)
        assert torch.allclose(shared.state, whole.state, rtol=0, atol=1e-12)
    with pytest.raises(ConfigError, match="begin with the same ids"):
        tower(ids.flip(1), lengths, True, prefix=prefix)


def test_the_model_carries_lengths_and_prefixes():
    torch.manual_seed(0)
    model = create_model("tiny-test", dtype=torch.float64).eval()
    ids, lengths = torch.randint(1, 49000, (3, 8)), torch.tensor([8, 3, 5])
    ids[:, 0] = 7
    features = model.encode_text(ids, lengths=lengths)
    assert torch.equal(features, model.text(ids, lengths).pooled)
    assert not torch.allclose(features, model.encode_text(ids))  # the largest id is elsewhere
    assert torch.equal(model.encode_text(ids), model.encode_text(ids, lengths=lengths_of(ids)))
    prefix = SharedPrefixes(torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64))
    assert torch.allclose(model.encode_text(ids, lengths=lengths, prefix=prefix), features, rtol=0, atol=1e-12)
    assert model.shares_prefixes and not create_model("tiny-test-siglip").shares_prefixes


@pytest.mark.parametrize(
    "lengths", [torch.tensor([0, 3]), torch.tensor([3, 19]), torch.tensor([[3, 3]]), torch.tensor([3.0, 3.0])], ids=str
)
@pytest.mark.parametrize(
    ("preset", "layout"), [("tiny-test", "auto"), ("tiny-test", "padded"), ("tiny-test-siglip", "")]
)
def test_lengths_that_do_not_fit_are_refused(lengths, preset, layout):
    tower = create_model(preset).text
    tower.layout = layout
    with pytest.raises(ConfigError, match=r"each 1 to (8|16)"):
        tower(torch.ones(2, 8, dtype=torch.int64), lengths)


@pytest.mark.parametrize("preset", ["tiny-test", "tiny-test-siglip"])
def test_a_config_takes_what_a_loss_needs(preset):
    config = model_config(preset)
    needed = config.with_needs(ModelNeeds(logit_bias=-7.0, logit_scale=math.log(12.0)))
    model = create_model(needed)
    assert model.logit_bias.tolist() == [-7.0]
    assert torch.allclose(model.logit_scale.exp(), torch.tensor([12.0]))
    assert model.image.config == needed
    assert config.with_needs(ModelNeeds()) == config
    assert replace(needed, logit_bias=config.logit_bias, logit_scale=config.logit_scale) == config
    with pytest.raises(ConfigError, match="finite"):
        config.with_needs(ModelNeeds(logit_bias=math.nan))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"vision": {"family": "transformer"}}, r"\[vision\] unknown family 'transformer'"),
        ({"text": {"family": "vit"}}, r"\[text\] unknown family 'vit'"),
        ({"vision": {"family": "no_such_module:Tower"}}, r"\[vision\] unknown family"),
        ({"vision": {"family": "os:system"}}, r"\[vision\] unknown family"),
    ],
)
def test_a_family_is_a_tower_of_its_kind_and_never_an_import(change, expected):
    values = model_config("tiny-test").to_dict()
    with pytest.raises(ConfigError, match=expected):
        model_config_from_dict(values | change)


def test_a_config_imports_nothing(tmp_path, monkeypatch):
    """It may come with the weights of strangers."""
    (tmp_path / "imported_by_config.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    values = model_config("tiny-test").to_dict()
    for change in (
        {"vision": {"family": "imported_by_config:Tower"}},
        {"text": values["text"] | {"tokenizer": "imported_by_config:T"}},
    ):
        with pytest.raises(ConfigError, match="unknown"):
            model_config_from_dict(values | change)


def test_every_preset_has_the_config_of_its_family():
    for name in list_models():
        config = model_config(name)
        assert type(config.vision) is TOWERS.get(config.vision.family).Config
        assert type(config.text) is TOWERS.get(config.text.family).Config


@dataclass(frozen=True)
class MeanColorConfig(VisionConfig):
    """The whole of a new family's configuration: nothing in the package names it."""

    depth: int
    family: str = field(default="tests.models.test_contract:MeanColor", kw_only=True)

    def problem(self, embed_dim):
        return "" if self.depth == 1 else f"depth {self.depth} is not 1."


class MeanColor(ImageTower):
    """A family in a file of somebody else's: the mean color, projected."""

    Config = MeanColorConfig

    def __init__(self, config):
        super().__init__(config)
        self.projection = nn.Linear(3, config.embed_dim)

    def forward(self, images, return_tokens=False, seeds=None):
        state = self.normalize(images).mean(dim=(2, 3))
        return Encoded(self.projection(state), state)

    def init_weights(self):
        self.projection.reset_parameters()


def test_a_family_is_one_file():
    values = model_config("tiny-test").to_dict()
    values["vision"] = {"family": f"{__name__}:MeanColor", "image_size": 32, "width": 3, "depth": 1}
    config = model_config_from_dict(values)
    assert isinstance(config.vision, MeanColorConfig)
    assert model_config_from_dict(config.to_dict()) == config
    model = create_model(config)
    assert model.encode_image(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 32)
    assert list(model.image.linears()) == ["projection"]
    values["vision"]["depth"] = 2
    with pytest.raises(ConfigError, match="depth 2 is not 1"):
        model_config_from_dict(values)
