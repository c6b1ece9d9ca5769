"""A cast of pixels changes no feature; what is neither pixels nor normalized is one line; real normalized images pass."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diptych.errors import ConfigError
from diptych.models import create_model, list_models, model_config
from diptych.models._pixels import holds_pixels

PRESETS = ["tiny-test", "tiny-test-siglip", "tiny-test-resnet"]
STATISTICS = sorted({(config.preprocess.mean, config.preprocess.std) for config in map(model_config, list_models())})


def statistics(pair=STATISTICS[0]):
    return tuple(torch.tensor(item).view(3, 1, 1) for item in pair)


def photo(seed=0, size=32):
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=PRESETS)
def model(request):
    torch.manual_seed(0)
    return create_model(request.param).eval()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64]
)
def test_pixels_of_another_type_give_the_same_features(model, dtype):
    images = photo()
    assert torch.equal(model.encode_image(images.to(dtype)), model.encode_image(images))


def test_pixels_cast_with_the_model_give_its_features(model):
    images, half = photo(), model.bfloat16()
    assert torch.equal(half.encode_image(images.bfloat16()), half.encode_image(images))
    assert torch.equal(half.encode_image(images.float()), half.encode_image(images))


def test_a_cast_is_said(model, capsys):
    from diptych.models import _pixels

    _pixels._say.cache_clear()
    model.encode_image(photo().float())
    model.encode_image(photo().float())
    assert capsys.readouterr().err.count("taken as pixels") == 1


def normalized(images, mean, std):
    return (images / 255 - mean) / std


@pytest.mark.parametrize("pair", STATISTICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_every_flat_gray_that_was_normalized_is_taken_as_it_is(pair, dtype):
    mean, std = statistics(pair)
    for level in range(256):
        images = torch.full((1, 3, 4, 4), level, dtype=torch.uint8)
        assert not holds_pixels(normalized(images, mean, std).to(dtype), mean, std), level


@settings(max_examples=60, deadline=None)
@given(
    arrays("uint8", (1, 3, 3, 3)),
    st.sampled_from(STATISTICS),
    st.sampled_from([torch.float32, torch.float64, torch.float16]),
)
def test_any_normalized_image_is_taken_as_it_is_and_any_cast_one_never(pixels, pair, dtype):
    mean, std = statistics(pair)
    images = torch.from_numpy(pixels)
    assert not holds_pixels(normalized(images, mean, std).to(dtype), mean, std)
    if len(images.unique()) > 2:
        assert holds_pixels(images.to(dtype), mean, std)
        if bool((mean == 0.5).all() and (std == 0.5).all() and (images % 2 == 1).all()):
            return  # n / 255 of odd n is also what normalizing (n + 255) / 2 gives: no one can know
        with pytest.raises(ConfigError):
            assert holds_pixels(images.float() / 255, mean, std)


def test_normalized_noise_is_taken_as_it_is():
    mean, std = statistics()
    for seed in range(20):
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2
        assert not holds_pixels(images, mean, std)


def test_a_black_image_stays_black(model):
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(model.encode_image(black.float()), model.encode_image(black))


@pytest.mark.parametrize(
    "images",
    [
        photo().float() / 255,
        (photo().float() / 255).half(),
        torch.rand(1, 3, 32, 32) * 255,
        -100 * torch.rand(1, 3, 32, 32),
        torch.full((1, 3, 32, 32), float("nan")),
        torch.full((1, 3, 32, 32), float("inf")),
        photo().long() - 1,
        photo().int() + 255,
        photo() > 100,
        photo().to(torch.complex64),
        photo()[:, :1],
        photo()[0],
        photo(size=31),
    ],
    ids=[
        "fractions",
        "half",
        "resized",
        "negative",
        "nan",
        "inf",
        "below",
        "above",
        "bool",
        "complex",
        "gray",
        "one",
        "small",
    ],
)
def test_what_is_neither_pixels_nor_normalized_is_one_line(images):
    with pytest.raises(ConfigError) as error:
        create_model("tiny-test").encode_image(images)
    assert re.search(r"were given[;,]? ", str(error.value))
    assert "\n" not in str(error.value)


def test_fractions_that_are_no_eighth_bit_are_taken_and_said(capsys):
    from diptych.models import _pixels

    _pixels._say.cache_clear()
    mean, std = statistics()
    assert not holds_pixels(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), mean, std)
    assert "between 0 and 1" in capsys.readouterr().err


def test_gradients_reach_pixels_that_were_cast():
    model = create_model("tiny-test").eval()
    images = photo().float().requires_grad_()
    model.encode_image(images).sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "given", ["a dog", [photo()[0]], photo().numpy(), None], ids=["text", "list", "array", "nothing"]
)
def test_what_is_no_tensor_is_one_line(given):
    model = create_model("tiny-test")
    for encode in (model.encode_image, model.encode_text):
        with pytest.raises(ConfigError, match=r"^a \w+ was given; expected "):
            encode(given)
