"""Views by name: the strong one against Pillow's own operations and against exact formulas."""

import colorsys
import hashlib

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from diptych.errors import ConfigError
from diptych.image import (
    STRONG_RECIPES,
    VIEWS,
    EvalTransform,
    StrongOptions,
    StrongTransform,
    TrainTransform,
    ViewOptions,
)
from diptych.image.colors import shift_hue

NEVER = {"jitter_p": 0.0, "grayscale_p": 0.0, "blur_p": 0.0, "flip_p": 0.0}


def photo(width=90, height=70, seed=0):
    """Smooth colors with some noise, as photos have."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    return np.clip(np.asarray(small, np.int16) + rng.integers(-9, 10, (height, width, 3)), 0, 255).astype(np.uint8)


def planar(image):
    return np.asarray(image).transpose(2, 0, 1)


def test_the_table_makes_each_view_of_the_options():
    options = ViewOptions(16, scale=(0.4, 0.8), flip=1.0, resize_mode="squash", interpolation="bilinear")
    image = photo()
    crop, strong, plain = (VIEWS[name](options) for name in ("crop", "strong", "eval"))
    train = TrainTransform(16, (0.4, 0.8), flip=1.0, interpolation="bilinear")
    assert np.array_equal(crop(image, np.random.default_rng(3)), train(image, np.random.default_rng(3)))
    expected = EvalTransform(16, "squash", "bilinear")(image).numpy()
    assert np.array_equal(plain(image, np.random.default_rng(3)), expected)
    assert strong == StrongTransform(16, interpolation="bilinear")
    for view in (crop, strong, plain):
        pixels = view(image, np.random.default_rng(1))
        assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.uint8, (3, 16, 16), True)


def test_nothing_changed_is_the_crop():
    image = photo()
    strong = StrongTransform(24, **NEVER)(image, np.random.default_rng(5))
    assert np.array_equal(strong, TrainTransform(24, (0.08, 1.0))(image, np.random.default_rng(5)))


@pytest.mark.parametrize("seed", range(40))
def test_it_is_what_pillow_alone_would_make(seed):
    """The same draws, each step written out by Pillow's own operations; the hue by a table of its HSV bytes."""
    transform, rng = StrongTransform(32), np.random.default_rng(seed)
    view = Image.fromarray(TrainTransform(32, (0.08, 1.0))(photo(), rng).transpose(1, 2, 0))
    if rng.random() < 0.8:
        order, factors, shift = rng.permutation(4), rng.uniform(0.6, 1.4, 3), int(rng.uniform(-0.1, 0.1) * 255)
        for number in order:
            if number == 3:
                hue, *others = view.convert("HSV").split()
                table = [(value + shift) % 256 for value in range(256)]
                view = Image.merge("HSV", (hue.point(table), *others)).convert("RGB")
            else:
                change = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[number]
                view = change(view).enhance(factors[number])
    if rng.random() < 0.2:
        view = view.convert("L").convert("RGB")
    if rng.random() < 0.5:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert np.array_equal(transform(photo(), np.random.default_rng(seed)), planar(view))


def test_probabilities_and_strengths_are_what_they_say():
    """Each change alone, on a whole image of vertical stripes of random saturated colors: how often it is seen."""
    image = np.broadcast_to(np.random.default_rng(1).integers(0, 2, (1, 16, 3)) * 200 + 20, (16, 16, 3)).astype(
        np.uint8
    )
    counts = {}
    for name, usual in (("jitter_p", 0.8), ("grayscale_p", 0.2), ("blur_p", 0.5), ("flip_p", 0.5)):
        assert getattr(StrongTransform(16), name) == usual
        # A crop of everything: only this one change is left.
        alone = StrongTransform(16, scale=(1.0, 1.0), **{**NEVER, name: usual})
        whole = StrongTransform(16, scale=(1.0, 1.0), **NEVER)
        rngs = [(np.random.default_rng(seed), np.random.default_rng(seed)) for seed in range(400)]
        counts[name] = np.mean([not np.array_equal(alone(image, one), whole(image, two)) for one, two in rngs])
    assert counts == pytest.approx({"jitter_p": 0.8, "grayscale_p": 0.2, "blur_p": 0.46, "flip_p": 0.5}, abs=0.08)


@pytest.mark.parametrize("shift", [-0.5, -0.1, -0.03, 0.05, 0.1, 1 / 3])
def test_hue_turns_as_the_formula_says(shift):
    image = photo(40, 30)
    ours = np.asarray(shift_hue(Image.fromarray(image), shift)).reshape(-1, 3).astype(int)
    exact = []
    for red, green, blue in image.reshape(-1, 3) / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        exact.append(colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value))
    difference = np.abs(ours - np.array(exact) * 255)
    # Hue and saturation are rounded to bytes: a hue step is 1/255 of the circle, six slopes of full height along it.
    assert difference.max() <= 14
    assert difference.mean() < 3
    largest = np.abs(ours.max(axis=1) - image.reshape(-1, 3).max(axis=1).astype(int))
    assert largest.max() <= 1  # the value of HSV is not touched


def test_hue_leaves_gray_alone_and_turns_red_to_green():
    gray = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    assert np.array_equal(np.asarray(shift_hue(Image.fromarray(gray), 0.3)), gray)
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    assert shift_hue(red, 1 / 3).getpixel((0, 0)) == (0, 255, 0)
    assert shift_hue(red, -1 / 3).getpixel((0, 0))[2] == 255
    assert shift_hue(red, 0.0).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.2, 2.0])
def test_blur_is_a_gaussian_of_that_many_pixels(sigma):
    """Pillow blurs by three boxes; held against the convolution in floating point."""
    image = photo(48, 48, seed=4)
    same = {**NEVER, "blur_p": 1.0, "sigma": (sigma, sigma)}
    ours = StrongTransform(48, scale=(1.0, 1.0), **same)(image, np.random.default_rng(0)).transpose(1, 2, 0)
    offsets = np.arange(-9, 10)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    weights /= weights.sum()
    exact = image.astype(float)
    for axis in (0, 1):
        padded = np.pad(exact, [(9, 9) if number == axis else (0, 0) for number in range(3)], mode="edge")
        exact = sum(
            weight * np.take(padded, np.arange(48) + 9 + at, axis) for weight, at in zip(weights, offsets, strict=True)
        )
    inside = np.s_[6:-6, 6:-6]
    assert np.abs(ours[inside] - exact[inside]).mean() < 1.0
    assert np.abs(ours[inside] - exact[inside]).max() < 5


def digest(pixels):
    return hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=6).hexdigest()


def drawing():
    """Pixels of whole-number arithmetic only: no library decides them."""
    y, x = np.mgrid[:90, :120]
    return np.stack([x * 2 + y, (x * y) // 3, 255 - y * 2], axis=-1).astype(np.uint8)


GOLDEN = {
    "crop": "46090da8b8d6",
    "strong": "03419eee504c",
    "auto": "fb16bc78496f",
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_the_same_pixels_on_every_machine(name, compiled, monkeypatch):
    """Ten seeds of a drawing, every random change among them; with and without the compiled kernels."""
    from diptych.image import colors, resize

    monkeypatch.setattr(resize, "_compiled", [])
    monkeypatch.setattr(colors, "_compiled", [])
    if compiled:
        pytest.importorskip("numba")
        resize.compile_kernels(None)
        colors.compile_color_kernels(None)
    always = {"flip": 0.5, "color_jitter": 0.4, "hue": 0.1, "grayscale": 0.3, "blur": 0.5, "scale": (0.3, 1.0)}
    options = ViewOptions(32, **always, auto="imagenet" if name == "auto" else "", strong=StrongOptions(solarize_p=0.3))
    view = VIEWS["strong" if name == "strong" else "crop"](options)
    assert digest(np.stack([view(drawing(), np.random.default_rng(seed)) for seed in range(10)])) == GOLDEN[name]


def test_recipes_are_the_published_strengths():
    declip = STRONG_RECIPES["moco-v2"]
    assert declip == StrongOptions(
        scale=(0.2, 1.0), jitter_p=0.8, jitter=0.4, hue=0.1, grayscale_p=0.2, blur_p=0.5, sigma=(0.1, 2.0), flip_p=0.5,
        solarize_p=0.0,
    )  # fmt: skip
    assert STRONG_RECIPES["slip"] == StrongOptions(scale=(0.08, 1.0)) == StrongOptions()
    made = VIEWS["strong"](ViewOptions(16, strong=declip, interpolation="bilinear"))
    assert made == StrongTransform(16, "bilinear", scale=(0.2, 1.0))


def test_solarizing_inverts_what_is_bright():
    image = photo(16, 16)
    solarized = StrongTransform(16, scale=(1.0, 1.0), **NEVER, solarize_p=1.0)(image, np.random.default_rng(0))
    plain = StrongTransform(16, scale=(1.0, 1.0), **NEVER)(image, np.random.default_rng(0))
    assert np.array_equal(solarized, np.where(plain < 128, plain, 255 - plain))
    assert not np.array_equal(solarized, plain)


def test_a_hue_of_nothing_rounds_no_color():
    image = photo(16, 16)
    never = {**NEVER, "jitter_p": 1.0}
    same = StrongTransform(16, scale=(1.0, 1.0), **never, jitter=0.0, hue=0.0)(image, np.random.default_rng(0))
    assert np.array_equal(same, StrongTransform(16, scale=(1.0, 1.0), **NEVER)(image, np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"scale": (0.0, 1.0)}, "--strong-scale 0 1: expected the least and the most share"),
        ({"scale": (0.5, 0.2)}, "--strong-scale 0.5 0.2"),
        ({"scale": (0.5, 1.5)}, "--strong-scale 0.5 1.5"),
        ({"sigma": (0.0, 2.0)}, "--strong-blur-sigma 0 2"),
        ({"sigma": (2.0, 1.0)}, "--strong-blur-sigma 2 1"),
    ],
)
def test_bounds_that_are_none_are_refused(values, line):
    with pytest.raises(ConfigError, match=line) as caught:
        StrongOptions(**values)
    assert "\n" not in str(caught.value)


def test_the_crop_is_blurred_where_that_is_asked_for():
    image = photo(48, 48)
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    rng = np.random.default_rng(1)
    plain = Image.fromarray(TrainTransform(48, **whole)(image, rng).transpose(1, 2, 0))
    rng.random()
    expected = np.asarray(plain.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0))))
    blurred = TrainTransform(48, **whole, blur=1.0)(image, np.random.default_rng(1))
    assert np.array_equal(blurred, expected.transpose(2, 0, 1))
    changed = [
        not np.array_equal(
            TrainTransform(48, **whole, blur=0.3)(image, np.random.default_rng(seed)),
            TrainTransform(48, **whole)(image, np.random.default_rng(seed)),
        )
        for seed in range(300)
    ]
    assert abs(np.mean(changed) - 0.3 * 0.93) < 0.09  # a sigma below 0.24 changes no byte
