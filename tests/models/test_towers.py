"""Fast paths are exact: packed equals padded, the shortened last block equals the whole, in values and gradients."""

import dataclasses

import pytest
import torch

from diptych.errors import ConfigError
from diptych.models import TOWERS, SharedPrefixes, create_model, model_config

END = 49407


FAMILIES = {
    "vit": "tiny-test",
    "resnet": "tiny-test-resnet",
    "siglip": "tiny-test-siglip",
    "transformer": "tiny-test",
    "siglip_text": "tiny-test-siglip",
}


@pytest.mark.parametrize("family", TOWERS.names())
def test_every_family_has_blocks_and_a_small_preset_to_test_it(family):
    model = create_model(FAMILIES[family])
    tower = model.text if family in ("transformer", "siglip_text") else model.image
    assert isinstance(tower, TOWERS.get(family))
    inside = set(tower.modules())
    assert tower.blocks()
    assert all(block in inside for block in tower.blocks())


def captions(lengths, width=77, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, 49000, (length,), generator=generator)
        ids[row, length - 1] = END
    return ids


def with_gradients(model, output):
    model.zero_grad()
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    (output * weights).sum().backward()
    return {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}


def assert_same(model, fast, reference, tolerance):
    """Two ways to compute the same: equal values, equal gradients of every parameter."""
    first, second = fast(), reference()
    assert (first - second).detach().abs().max() <= tolerance * max(1.0, float(first.detach().abs().max()))
    left, right = with_gradients(model, fast()), with_gradients(model, reference())
    assert left.keys() == right.keys()
    for name, gradient in left.items():
        assert (gradient - right[name]).abs().max() <= 10 * tolerance * max(
            1.0, float(gradient.detach().abs().max())
        ), name


LENGTHS = {
    "mixed": [3, 77, 1, 14, 14, 2, 9],
    "all equal": [8, 8, 8],
    "one caption": [5],
    "shortest": [1, 1],
    "longest": [77, 77],
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_packed_text_equals_padded_text(lengths, dtype, tolerance):
    model = create_model("tiny-test", dtype=dtype).text
    ids = captions(lengths)

    def way(layout, lengths=None):
        def run():
            model.layout = layout
            return model(ids, lengths).pooled

        return run

    assert_same(model, way("auto"), way("padded"), tolerance)
    given = torch.tensor(lengths)
    assert_same(model, way("auto", given), way("auto"), 1e-15)
    trimmed = ids[:, : max(lengths)]
    model.layout = "auto"
    assert (model(trimmed).pooled - model(ids).pooled).abs().max() <= tolerance * 10


@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_what_follows_the_first_end_token_is_ignored(layout):
    model = create_model("tiny-test").text
    model.layout = layout
    ids = captions([6])
    changed = ids.clone()
    changed[0, 6:20] = torch.randint(1, 49000, (14,))
    changed[0, 12] = END  # a second end token, later
    assert torch.allclose(model(ids).pooled, model(changed).pooled, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_the_shortened_last_block_equals_the_whole(tower, dtype, tolerance):
    model = getattr(create_model("tiny-test", dtype=dtype), tower)
    given = captions([5, 9, 30]) if tower == "text" else torch.randn(3, 3, 32, 32, dtype=dtype)
    assert_same(model, lambda: model(given).pooled, lambda: model(given, return_tokens=True).pooled, tolerance)


@pytest.mark.parametrize("name", ["tiny-test", "tiny-test-resnet"])
def test_every_parameter_gets_a_gradient(name):
    model = create_model(name).train()
    images, texts, scale = model(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), captions([4, 5, 6, 7]))
    (scale * (images @ texts.T)).square().sum().backward()
    assert not [item for item, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("name", ["tiny-test", "tiny-test-resnet"])
def test_gradient_checkpointing_changes_nothing(name):
    model = create_model(name, dtype=torch.float64).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    ids = captions([4, 9, 5])

    def way(on):
        def run():
            model.checkpoint_activations(on)
            return torch.cat([model.encode_image(images), model.encode_text(ids)])

        return run

    assert_same(model, way(True), way(False), 1e-13)


def test_uint8_pixels_and_normalized_pixels_give_the_same_features():
    model = create_model("tiny-test").eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (
        torch.tensor(item).view(3, 1, 1) for item in (model.config.preprocess.mean, model.config.preprocess.std)
    )
    assert torch.allclose(model.encode_image(images), model.encode_image((images / 255 - mean) / std), atol=1e-5)


@pytest.mark.parametrize("name", ["tiny-test", "tiny-test-resnet"])
def test_token_outputs_have_a_mask_of_what_is_real(name):
    model = create_model(name).eval()
    text = model.text(captions([3, 5], width=8), return_tokens=True)
    assert text.tokens.shape == (2, 8, 32)
    assert text.mask.sum(dim=1).tolist() == [3, 5]
    image = model.image(torch.zeros(2, 3, 32, 32), return_tokens=True)
    assert image.tokens.shape[:2] == image.mask.shape
    assert bool(image.mask.all())


def test_a_saved_state_loads_and_gives_the_same_features():
    saved, loaded = create_model("tiny-test").eval(), create_model("tiny-test").eval()
    ids = captions([4, 7])
    assert not torch.allclose(saved.encode_text(ids), loaded.encode_text(ids))
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(saved.encode_text(ids), loaded.encode_text(ids))


@pytest.mark.parametrize("name", ["tiny-test", "tiny-test-resnet"])
def test_initializing_fills_everything_and_a_seed_repeats_it(name):
    torch.manual_seed(3)
    direct = create_model(name)
    empty = create_model(name, device="meta").to_empty(device="cpu")
    for item in empty.state_dict().values():
        item.fill_(float("nan") if item.is_floating_point() else 77)
    torch.manual_seed(3)
    empty.init_weights()
    for key, item in direct.state_dict().items():
        assert torch.equal(item, empty.state_dict()[key]), key


def test_wrong_shapes_are_one_line():
    model = create_model("tiny-test")
    with pytest.raises(ConfigError, match=r"expected|takes \[B, 3, 32, 32\]"):
        model.encode_image(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ConfigError, match="at most 77"):
        model.encode_text(torch.ones(1, 78, dtype=torch.int64))


def test_features_run_under_autocast():
    model = create_model("tiny-test")
    with torch.autocast("cpu", torch.bfloat16):
        images, texts, _ = model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), captions([4, 9]))
    assert bool(torch.isfinite(images).all() and torch.isfinite(texts).all())


EMPTY = ["tiny-test", "tiny-test-siglip", "tiny-test-resnet", "tiny-test-clipa"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", EMPTY)
@torch.no_grad()
def test_no_image_and_no_text_give_no_row(name, dtype):
    model = create_model(name, dtype=dtype).eval()
    size, width = model.config.vision.image_size, model.config.embed_dim
    ids = torch.zeros(0, model.config.text.context_length, dtype=torch.int64)
    for normalize in (False, True):
        for images in (torch.zeros(0, 3, size, size, dtype=torch.uint8), torch.zeros(0, 3, size, size, dtype=dtype)):
            assert model.encode_image(images, normalize).shape == (0, width)
        assert model.encode_text(ids, normalize).shape == (0, width)
    lengths = torch.zeros(0, dtype=torch.int64)
    assert model.encode_text(ids, lengths=lengths).shape == (0, width)
    assert model.text(ids, return_tokens=True).pooled.shape == (0, width)
    assert model.image(images, return_tokens=True).pooled.shape == (0, width)
    if model.shares_prefixes:
        shared = SharedPrefixes(lengths, lengths)
        assert model.encode_text(ids, lengths=lengths, prefix=shared).shape == (0, width)
        model.text.layout = "padded"
        assert model.encode_text(ids).shape == (0, width)


@pytest.mark.parametrize(
    "ids",
    [torch.zeros(2, 0, dtype=torch.int64), torch.ones(2, 9), torch.full((1, 9), -1), torch.full((1, 9), 60000),
     torch.ones(9, dtype=torch.int64)],
    ids=["no column", "floats", "negative", "beyond the vocabulary", "one text"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["tiny-test", "tiny-test-siglip"])
def test_ids_that_are_none_are_one_line(name, ids):
    with pytest.raises(ConfigError) as error:
        create_model(name).encode_text(ids)
    assert "were given" in str(error.value)
    assert "\n" not in str(error.value)


def test_ids_of_32_bits_are_ids():
    model = create_model("tiny-test").eval()
    ids = captions([3, 8, 5])
    assert torch.equal(model.encode_text(ids.int()), model.encode_text(ids))


def test_declips_tokens_are_those_before_the_last_norm():
    config = model_config("tiny-test")
    before = create_model(dataclasses.replace(config, vision=dataclasses.replace(config.vision, norm_tokens=False)))
    after = create_model(config)
    after.load_state_dict(before.state_dict())
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        raw, normed = (model.eval().image(images, return_tokens=True) for model in (before, after))
        assert torch.equal(before.image.ln_post(raw.tokens), normed.tokens)
        assert not torch.allclose(raw.tokens, normed.tokens)
        assert torch.equal(raw.pooled, normed.pooled) and torch.equal(raw.state, normed.state)
        assert torch.equal(before.image.project_tokens(raw.tokens), after.image.project_tokens(normed.tokens))
