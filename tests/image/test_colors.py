"""Changes of colors: the compiled form gives Pillow's bytes, for every color and many sizes, and the loader asks for it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from diptych.data import Loader, LoaderOptions, build_prepare, open_source
from diptych.image import ViewOptions, colors
from diptych.image.colors import changed, compile_color_kernels, shift_hue
from diptych.text import get_tokenizer
from diptych.types import Wants
from tests.data.world import write_jsonl

PILLOW = {
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "saturation": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "hue": shift_hue,
    "gray": lambda image, _: image.convert("L").convert("RGB"),
    "blur": lambda image, sigma: image.filter(ImageFilter.GaussianBlur(sigma)),
    "mirror": lambda image, _: ImageOps.mirror(image),
    "solarize": lambda image, least: ImageOps.solarize(image, int(least)),
}
AMOUNTS = {
    "brightness": (0.0, 0.6, 1.0, 1.2345, 2.0), "contrast": (0.0, 0.61, 1.0, 1.4), "saturation": (0.0, 0.7, 1.0, 1.39),
    "hue": (-0.5, -0.1, 0.0, 0.03, 0.37), "gray": (0.0,), "blur": (0.05, 0.3, 1.0, 1.7), "mirror": (0.0,),
    "solarize": (0.0, 128.0, 256.0),
}  # fmt: skip


@pytest.fixture(params=[False, True], ids=["pillow", "compiled"])
def way(request, monkeypatch):
    """Each of the two ways to the same bytes."""
    monkeypatch.setattr(colors, "_compiled", [])
    if request.param:
        pytest.importorskip("numba")
        compile_color_kernels(None)
        assert colors._compiled


def every_color(step):
    values = np.unique(np.append(np.arange(0, 256, step, dtype=np.uint8), np.uint8(255)))
    grid = np.stack(np.meshgrid(values, values, values, indexing="ij"), -1)
    return grid.reshape(len(values), -1, 3)


def planes_of(image):
    return np.ascontiguousarray(image.transpose(2, 0, 1))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", sorted(PILLOW))
def test_every_color_becomes_pillows(name):
    image = every_color(5)
    for amount in AMOUNTS[name]:
        expected = np.asarray(PILLOW[name](Image.fromarray(image), amount))
        ours = changed(planes_of(image), [(name, amount)])
        assert ours.dtype == np.uint8 and ours.flags.c_contiguous
        assert np.array_equal(ours, expected.transpose(2, 0, 1)), amount


@pytest.mark.slow
@pytest.mark.usefixtures("way")
def test_really_every_color_is_turned_as_pillow_turns_it():
    image = every_color(1).reshape(4096, 4096, 3)
    for shift in (-0.1, 0.0, 0.07):
        expected = np.asarray(shift_hue(Image.fromarray(image), shift)).transpose(2, 0, 1)
        assert np.array_equal(changed(planes_of(image), [("hue", shift)]), expected)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.02, 8.0), st.integers(0, 1 << 30))
def test_blurs_of_every_size_are_pillows(height, width, sigma, seed):
    pytest.importorskip("numba")
    from diptych.image import _color_kernels

    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    planes = planes_of(image).copy()
    _color_kernels.blur(planes, sigma)
    assert np.array_equal(planes.transpose(1, 2, 0), np.asarray(PILLOW["blur"](Image.fromarray(image), sigma)))


@pytest.mark.usefixtures("way")
def test_changes_follow_each_other_and_leave_the_given_pixels_alone():
    image = every_color(40)
    changes = [
        ("hue", 0.05),
        ("contrast", 1.2),
        ("brightness", 0.8),
        ("blur", 1.1),
        ("mirror", 0.0),
        ("solarize", 128.0),
    ]
    before, expected = image.copy(), Image.fromarray(image)
    for name, amount in changes:
        expected = PILLOW[name](expected, amount)
    ours = changed(image.transpose(2, 0, 1), changes)  # a view of somebody's pixels
    assert np.array_equal(ours, np.asarray(expected).transpose(2, 0, 1)) and np.array_equal(image, before)
    assert changed(planes_of(image), []).shape == (3, *image.shape[:2])


@pytest.mark.parametrize(("images", "worth"), [(10, False), (4000, True), (None, True)])
def test_the_kernels_are_compiled_where_that_is_worth_it(images, worth, monkeypatch):
    monkeypatch.setattr(colors, "_compiled", [])
    monkeypatch.setattr(colors, "_import_kernels", lambda: "kernels")
    compile_color_kernels(images)
    assert bool(colors._compiled) == worth
    monkeypatch.setattr(colors, "_compiled", [])
    monkeypatch.setattr(colors, "_import_kernels", lambda: None)
    compile_color_kernels(None)
    assert not colors._compiled


@pytest.mark.parametrize(("views", "asked"), [(("crop",), False), (("crop", "strong"), True), (("eval",), False)])
def test_a_loader_asks_for_them_where_a_view_is_strong(tmp_path, monkeypatch, views, asked):
    calls = []
    monkeypatch.setattr("diptych.data._loader.compile_color_kernels", calls.append)
    prepare = build_prepare(Wants(images=views), get_tokenizer("bpe"), ViewOptions(8))
    next(iter(Loader(open_source(write_jsonl(tmp_path)), prepare, LoaderOptions(4))))
    assert bool(calls) == asked


@pytest.mark.usefixtures("way")
def test_views_do_not_depend_on_the_number_of_loader_processes(tmp_path):
    source = open_source(write_jsonl(tmp_path))
    wants = Wants(images=("crop", "strong", "strong"), texts=("caption", "augmented"))
    options = ViewOptions(16, scale=(0.3, 1.0), flip=0.5, auto="imagenet", blur=0.5)
    prepare = build_prepare(wants, get_tokenizer("bpe"), options)
    batches = [
        [
            batch
            for (batch, _), _ in zip(Loader(source, prepare, LoaderOptions(4, workers=workers)), range(4), strict=False)
        ]
        for workers in (0, 1, 2)
    ]
    for others in batches[1:]:
        for batch, other in zip(batches[0], others, strict=True):
            assert batch.keys == other.keys
            assert np.array_equal(batch.images.numpy(), other.images.numpy())
            assert np.array_equal(batch.tokens.numpy(), other.tokens.numpy())
