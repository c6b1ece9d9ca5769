"""AutoAugment's ImageNet policy: the published table, and each operation against its definition in NumPy or float64."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.image import TrainTransform
from diptych.image.auto_augment import GRAY, OPERATIONS, POLICY, auto_augment, magnitude
from tests.image.test_views import photo


def luma(pixels):
    """Pillow's gray: ITU-R 601 in 16 bits after the point, rounded."""
    red, green, blue = (pixels[..., channel].astype(np.int64) for channel in range(3))
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def blended(gray, pixels, factor):
    """torchvision's and Pillow's rule: gray + factor * (pixels - gray), truncated to a byte."""
    mixed = np.float32(gray) + np.float32(factor) * (pixels.astype(np.float32) - np.float32(gray))
    return np.clip(mixed, 0, 255).astype(np.uint8)


def color(pixels, strength):
    return blended(luma(pixels)[..., None], pixels, 1 + strength)


def contrast(pixels, strength):
    return blended(int(luma(pixels).mean() + 0.5), pixels, 1 + strength)


def sharpness(pixels, strength):
    """Against the mean of nine neighbors, the middle one of weight 5; the border stays."""
    smooth = pixels.copy()
    total = 5 * pixels[1:-1, 1:-1].astype(float)
    height, width = pixels.shape[:2]
    for down in range(3):
        for right in range(3):
            if (down, right) != (1, 1):
                total += pixels[down : height - 2 + down, right : width - 2 + right]
    smooth[1:-1, 1:-1] = np.floor(total / 13 + 0.5)
    return blended(smooth, pixels, 1 + strength)


def moved(pixels, matrix, nudge=0.0):
    """Each output's center, through the matrix, to the input pixel that it falls into; gray outside."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    a, b, c, d, e, f = matrix
    at_x, at_y = np.floor(a * x + b * y + c + nudge).astype(int), np.floor(d * x + e * y + f + nudge).astype(int)
    inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
    out = np.full_like(pixels, GRAY[0])
    out[inside] = pixels[at_y[inside], at_x[inside]]
    return out


def shear(pixels, strength, nudge=0.0):
    return moved(pixels, (1, strength, 0, 0, 1, 0), nudge)


def rotate(pixels, degrees, nudge=0.0):
    height, width = pixels.shape[:2]
    angle, x, y = -np.deg2rad(degrees), width / 2, height / 2
    cos, sin = np.cos(angle), np.sin(angle)
    return moved(pixels, (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y), nudge)


def equalize(pixels, _):
    out = pixels.copy()
    for channel in range(3):
        histogram = np.bincount(pixels[..., channel].ravel(), minlength=256)
        step = (histogram.sum() - histogram[np.nonzero(histogram)[0][-1]]) // 255
        if step and (histogram > 0).sum() > 1:
            before = np.concatenate([[0], np.cumsum(histogram)[:-1]])
            out[..., channel] = np.minimum((before + step // 2) // step, 255)[pixels[..., channel]]
    return out


def autocontrast(pixels, _):
    low, high = pixels.min((0, 1)).astype(float), pixels.max((0, 1)).astype(float)
    scale = 255.0 / (high - low)
    return np.clip(np.trunc(pixels * scale - low * scale), 0, 255).astype(np.uint8)


REFERENCES = {
    "shear": shear,
    "rotate": rotate,
    "color": color,
    "contrast": contrast,
    "sharpness": sharpness,
    "posterize": lambda pixels, lost: pixels & np.uint8(256 - 2 ** round(lost)),
    "solarize": lambda pixels, threshold: np.where(pixels < threshold, pixels, 255 - pixels),
    "autocontrast": autocontrast,
    "equalize": equalize,
    "invert": lambda pixels, _: 255 - pixels,
}


@pytest.mark.parametrize("strength", range(10))
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_each_operation_is_its_definition(name, strength):
    for positive in (True, False):
        value, image = magnitude(name, strength, positive), photo(60, 47, seed=strength)
        ours = np.asarray(OPERATIONS[name][0](Image.fromarray(image), value)).astype(int)
        expected = REFERENCES[name](image, value).astype(int)
        if name in ("rotate", "shear"):  # a center that falls on the border of two pixels may go either way
            either = [REFERENCES[name](image, value, nudge) for nudge in (-1e-3, 1e-3)]
            assert np.logical_or(*((ours == side).all(axis=2) for side in either)).mean() > 0.999
        else:
            assert np.abs(ours - expected).max() <= (1 if name in ("sharpness", "autocontrast") else 0)
            assert (ours != expected).mean() < 0.02


def test_strengths_are_torchvisions():
    """Its tables, as its ``AutoAugment`` writes them."""
    tables = {
        "shear": torch.linspace(0.0, 0.3, 10),
        "rotate": torch.linspace(0.0, 30.0, 10),
        "solarize": torch.linspace(255.0, 0.0, 10),
        **{name: torch.linspace(0.0, 0.9, 10) for name in ("color", "contrast", "sharpness")},
    }
    for name, table in tables.items():
        ours = [magnitude(name, strength) for strength in range(10)]
        assert np.allclose(ours, table.numpy(), atol=1e-5), name
        signed = [magnitude(name, strength, positive=False) for strength in range(10)]
        assert np.allclose(signed, ours if name == "solarize" else -np.array(ours))
    bits = 8 - (torch.arange(10) / (9 / 4)).round().int()
    assert [8 - round(magnitude("posterize", strength)) for strength in range(10)] == bits.tolist()


def test_the_policy_has_25_pairs_of_the_published_operations():
    assert len(POLICY) == 25 and all(len(pair) == 2 for pair in POLICY)
    assert {step[0] for pair in POLICY for step in pair} == set(OPERATIONS)
    assert Counter(POLICY).most_common(1)[0][1] == 2  # five pairs stand twice, as published
    assert sum(count == 2 for count in Counter(POLICY).values()) == 5


def test_pairs_probabilities_and_signs_are_drawn_as_the_paper_says(monkeypatch):
    counts: Counter = Counter()
    for name in OPERATIONS:
        _, ends, signed = OPERATIONS[name]

        def note(image, value, name=name):
            counts[name, value > 0] += 1
            return image

        monkeypatch.setitem(OPERATIONS, name, (note, ends, signed))
    image, total = Image.new("RGB", (4, 4)), 10_000
    for seed in range(total):
        auto_augment(image, np.random.default_rng(seed))
    for name, (_, _, signed) in OPERATIONS.items():
        steps = [(probability, strength) for pair in POLICY for own, probability, strength in pair if own == name]
        expected = sum(probability for probability, _ in steps) / 25
        seen = (counts[name, True] + counts[name, False]) / total
        assert abs(seen - expected) < 5 * (expected / total) ** 0.5, name
        if signed:
            moving = sum(probability for probability, strength in steps if strength) / 25
            assert abs(counts[name, True] / total - moving / 2) < 5 * (moving / total) ** 0.5, name


def test_it_stands_between_the_mirror_and_the_colors():
    image = photo()
    transform = TrainTransform(24, (0.5, 1.0), flip=1.0, auto="imagenet", grayscale=1.0)
    rng = np.random.default_rng(3)
    view = Image.fromarray(TrainTransform(24, (0.5, 1.0))(image, rng).transpose(1, 2, 0))
    rng.random()
    view = auto_augment(view.transpose(Image.Transpose.FLIP_LEFT_RIGHT), rng).convert("L").convert("RGB")
    assert np.array_equal(transform(image, np.random.default_rng(3)), np.asarray(view).transpose(2, 0, 1))
