"""One file has the same pixels by every way in; arrays and tensors are read by one rule, or are one line."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from diptych.errors import RecordError
from diptych.image import EvalTransform, StrongTransform, TrainTransform, decode_image, pixels_of
from diptych.weights import Preprocess

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
GRAY = COLORS[..., 0]


def exif(orientation):
    table = Image.Exif()
    table[0x0112] = orientation
    return table


def with_alpha(mode):
    image = Image.fromarray(COLORS).convert(mode)
    image.putalpha(Image.fromarray(GRAY))
    return image


FILES = {
    "rgb.png": (lambda: Image.fromarray(COLORS), {}),
    "plain.jpg": (lambda: Image.fromarray(COLORS), {"quality": 80}),
    "turned.jpg": (lambda: Image.fromarray(COLORS), {"exif": exif(6)}),
    "mirrored.png": (lambda: Image.fromarray(COLORS), {"exif": exif(5)}),
    "alpha.png": (lambda: with_alpha("RGB"), {}),
    "alpha.webp": (lambda: with_alpha("RGB"), {"lossless": True}),
    "gray and alpha.png": (lambda: with_alpha("L"), {}),
    "gray.png": (lambda: Image.fromarray(GRAY), {}),
    "gray16.png": (lambda: Image.fromarray(GRAY.astype(np.uint16) * 257), {}),
    "gray16.tif": (lambda: Image.fromarray(GRAY.astype(np.uint16) * 257), {}),
    "float.tif": (lambda: Image.fromarray(GRAY.astype(np.float32) / 255), {}),
    "long.tif": (lambda: Image.fromarray(GRAY.astype(np.int32)), {}),
    "palette.png": (lambda: Image.fromarray(COLORS).quantize(16), {}),
    "palette.gif": (lambda: Image.fromarray(COLORS).quantize(16), {"transparency": 3}),
    "transparent palette.png": (lambda: Image.fromarray(COLORS).quantize(16), {"transparency": 3}),
    "transparent color.png": (lambda: Image.fromarray(COLORS), {"transparency": tuple(COLORS[0, 0].tolist())}),
    "print.jpg": (lambda: Image.fromarray(COLORS).convert("CMYK"), {}),
    "print.tif": (lambda: Image.fromarray(COLORS).convert("CMYK"), {}),
    "bits.png": (lambda: Image.fromarray(GRAY).convert("1"), {}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_has_the_same_pixels_opened_and_by_its_path(name, tmp_path):
    make, options = FILES[name]
    path = tmp_path / name
    make().save(path, **options)
    expected = np.asarray(decode_image(path))
    with Image.open(path) as opened:
        assert np.array_equal(pixels_of(opened), expected)
    for same in (path, str(path), path.read_bytes(), decode_image(path), expected):
        assert np.array_equal(pixels_of(same), expected)
    preprocess, transform = Preprocess(EvalTransform(16)), EvalTransform(16)
    with Image.open(path) as opened:
        assert torch.equal(preprocess(opened), transform(expected))
    assert torch.equal(preprocess(path), transform(expected))


def test_an_image_that_was_turned_upright_is_not_turned_again(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "a.png", exif=exif(6))
    with Image.open(tmp_path / "a.png") as opened:
        upright = ImageOps.exif_transpose(opened)
        assert np.array_equal(pixels_of(opened), pixels_of(upright))
        assert pixels_of(opened).shape == (40, 30, 3)


def test_arrays_of_one_image_in_many_types_are_one_image():
    for same in (
        COLORS.astype(np.int64), COLORS.astype(np.float32), COLORS / 255, (COLORS / 255).astype(np.float32),
        COLORS[:, ::-1][:, ::-1],
        torch.from_numpy(COLORS).permute(2, 0, 1), torch.from_numpy(COLORS).permute(2, 0, 1).float() / 255,
        COLORS.astype(np.uint16) * 257, COLORS / 255 * 1.0001 - 5e-5,
        torch.from_numpy(COLORS).permute(2, 0, 1).bfloat16(), np.dstack([COLORS, np.full_like(GRAY, 255)]),
    ):  # fmt: skip
        assert np.array_equal(pixels_of(same), COLORS)
    gray = np.dstack([GRAY] * 3)
    for same in (GRAY, GRAY[..., None], GRAY.astype(np.uint16) * 257, GRAY.astype(np.int32) * 257, torch.from_numpy(GRAY)[None],
                 torch.from_numpy(GRAY), np.dstack([GRAY, np.full_like(GRAY, 255)])):  # fmt: skip
        assert np.array_equal(pixels_of(same), gray)
    assert np.array_equal(pixels_of(GRAY > 100), np.dstack([np.where(GRAY > 100, 255, 0)] * 3))
    clear = np.dstack([COLORS, np.zeros_like(GRAY)])
    assert (pixels_of(clear) == 255).all()  # nothing but the white page


WRONG = {
    "nothing": None,
    "number": 3,
    "list": [Image.new("RGB", (4, 4))],
    "batch": np.zeros((2, 8, 8, 3), np.uint8),
    "channels first": np.zeros((3, 8, 8), np.uint8),
    "tensor with channels last": torch.zeros(8, 8, 3, dtype=torch.uint8),
    "vector": np.zeros(8, np.uint8),
    "empty": np.zeros((0, 4, 3), np.uint8),
    "five channels": np.zeros((8, 8, 5), np.uint8),
    "negative": np.full((8, 8, 3), -1),
    "large": np.full((8, 8, 3), 256),
    "32 bits": np.full((8, 8), 70000),
    "normalized": RNG.normal(size=(8, 8, 3)),
    "floats of bytes": RNG.uniform(0, 255, (8, 8, 3)),
    "not a number": np.full((8, 8, 3), np.nan),
    "infinite": np.full((8, 8, 3), np.inf),
    "text": np.full((8, 8, 3), "a"),
    "complex": np.zeros((8, 8, 3), np.complex64),
    "no such file": "no/such/file.png",
    "no image": b"hello",
    "no bytes": b"",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_image_is_one_line(name):
    with pytest.raises(RecordError) as error:
        pixels_of(WRONG[name])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_a_truncated_file_that_was_opened_is_one_line(tmp_path):
    Image.fromarray(COLORS).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(RecordError, match=r"a\.png: damaged or truncated"):
        Preprocess(EvalTransform(8))(opened)


@settings(max_examples=50, deadline=None)
@given(arrays("uint8", st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))))
def test_fractions_and_bytes_of_any_array_are_one_image(values):
    expected = pixels_of(values)
    assert expected.shape == (*values.shape[:2], 3)
    assert expected.dtype == np.uint8
    assert np.array_equal(pixels_of(values / 255), expected)


@pytest.mark.parametrize("transform", [TrainTransform(16), StrongTransform(16)], ids=["train", "strong"])
def test_random_transforms_take_any_image(transform, tmp_path):
    with_alpha("RGB").save(tmp_path / "a.png", exif=exif(3))
    expected = transform(np.asarray(decode_image(tmp_path / "a.png")), np.random.default_rng(1))
    with Image.open(tmp_path / "a.png") as opened:
        assert np.array_equal(transform(opened, np.random.default_rng(1)), expected)


@pytest.mark.parametrize(
    "values",
    [
        GRAY.astype(np.float32) * 300,
        GRAY.astype(np.float32) - 300,
        np.full((8, 8), np.nan, np.float32),
        GRAY.astype(np.int32) * 70000,
    ],
    ids=["floats over 255", "negative", "not a number", "32 bits"],
)
def test_gray_values_that_are_none_are_one_line_by_every_way_in(values, tmp_path):
    """Neither white nor black without a word."""
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(RecordError, match=r"a\.tif: gray values from .* and they end at (255|65535)"):
        decode_image(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as opened, pytest.raises(RecordError, match=r"a\.tif: gray values from "):
        pixels_of(opened)
