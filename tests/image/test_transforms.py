"""The pixels are the reference's pixels, and training crops obey their bounds."""

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.errors import ConfigError
from diptych.image import EvalTransform, TrainTransform, decode_image
from tests.photos import needs_photos, some_photos


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def reference(image, size):
    """transformers' own CLIP resizing; the crop's corner is rounded half to even, as torchvision's CenterCrop does.

    (transformers rounds the corner down: where the margin is odd, it crops one pixel further left or up than the code that
    CLIP was published with.)
    """
    from transformers import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, do_center_crop=False, do_rescale=False, do_normalize=False
    )
    resized = np.asarray(processor(image)["pixel_values"][0])
    top, left = (round((side - size) / 2) for side in resized.shape[1:])
    return resized[:, top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (224, 224), (225, 500), (97, 61), (1001, 333), (379, 256)])
def test_eval_pixels_equal_transformers(shape):
    image = noise(*shape)
    ours = EvalTransform(224)(image).numpy().astype(int)
    assert np.abs(ours - reference(image, 224)).max() <= 1


def test_with_an_even_margin_the_whole_of_transformers_preprocessing_agrees():
    from transformers import CLIPImageProcessorPil

    image = noise(300, 448)
    theirs = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)(image)["pixel_values"][0]
    assert np.abs(EvalTransform(224)(image).numpy().astype(int) - np.asarray(theirs)).max() <= 1


@needs_photos
def test_eval_pixels_equal_transformers_on_photos():
    for path in some_photos(50):
        image = decode_image(path)
        ours = EvalTransform(224)(image).numpy().astype(int)
        assert np.abs(ours - reference(image, 224)).max() <= 1, path.name


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_every_mode_gives_the_square(mode):
    pixels = EvalTransform(32, mode)(noise(50, 20))
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.uint8


def test_longest_keeps_the_whole_picture_on_black():
    pixels = EvalTransform(32, "longest")(Image.new("RGB", (64, 32), (255, 255, 255)))
    assert pixels[:, :8].max() == 0
    assert pixels[:, 8:24].min() == 255


def test_a_generator_decides_everything():
    transform = TrainTransform(32, (0.2, 1.0), flip=0.5, color_jitter=0.4, grayscale=0.2)
    image = noise(100, 80)
    one, same, other = (transform(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one.shape == (3, 32, 32)
    assert one.dtype == np.uint8


def test_crops_keep_their_share_of_the_area_and_their_shape():
    transform = TrainTransform(8, (0.3, 0.6))
    rng = np.random.default_rng(0)
    for _ in range(300):
        left, top, right, bottom = transform._box(640, 480, rng)
        assert 0 <= left < right <= 640
        assert 0 <= top < bottom <= 480
        share = (right - left) * (bottom - top) / (640 * 480)
        assert 0.295 <= share <= 0.605
        assert 0.74 <= (right - left) / (bottom - top) <= 1.35


@pytest.mark.parametrize("shape", [(1000, 10), (10, 1000), (1, 1), (1, 500)])
def test_extreme_shapes_fall_back_to_a_centred_crop(shape):
    pixels = TrainTransform(16)(noise(*shape), np.random.default_rng(0))
    assert pixels.shape == (3, 16, 16)


def test_full_scale_on_a_square_is_the_whole_picture():
    image = noise(64, 64)
    whole = TrainTransform(64, (1.0, 1.0), (1.0, 1.0))(image, np.random.default_rng(0))
    assert np.array_equal(whole, np.asarray(image).transpose(2, 0, 1))


def test_grayscale_has_equal_channels_and_flip_mirrors():
    image = noise(32, 32)
    always = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    grey = TrainTransform(32, **always, grayscale=1.0)(image, np.random.default_rng(0))
    assert np.array_equal(grey[0], grey[1])
    plain = TrainTransform(32, **always)(image, np.random.default_rng(0))
    flipped = TrainTransform(32, **always, flip=1.0)(image, np.random.default_rng(0))
    assert np.array_equal(flipped, plain[:, :, ::-1])


def test_an_unknown_kernel_or_mode_is_named():
    with pytest.raises(ConfigError, match="'bicubicc'"):
        EvalTransform(8, interpolation="bicubicc")(noise(9, 9))
    with pytest.raises(ConfigError, match="'crop'"):
        EvalTransform(8, "crop")(noise(9, 9))


@needs_photos
def test_siglips_square_equals_transformers_on_photos():
    from transformers import SiglipImageProcessorPil

    processor = SiglipImageProcessorPil(
        size={"height": 224, "width": 224}, resample=3, do_rescale=False, do_normalize=False
    )
    for path in some_photos(50):
        image = decode_image(path)
        theirs = np.asarray(processor(image)["pixel_values"][0]).astype(int)
        ours = EvalTransform(224, "squash")(image).numpy().astype(int)
        assert np.abs(ours - theirs).max() <= 1, path.name


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (97, 61), (1001, 333), (40, 30)])
def test_the_fast_kernel_is_the_exact_one_up_to_rounding(shape, interpolation):
    image = noise(*shape)
    exact, fast = (
        TrainTransform(64, (0.5, 1.0), interpolation=interpolation, kernel=kernel) for kernel in ("exact", "fast")
    )
    for seed in range(4):
        one, two = (transform(image, np.random.default_rng(seed)).astype(int) for transform in (exact, fast))
        assert two.shape == (3, 64, 64)
        assert np.abs(one - two).mean() < 0.2
        assert (np.abs(one - two) > 1).mean() < 0.02


@needs_photos
def test_the_fast_kernel_on_photos_differs_by_less_than_a_tenth_of_a_gray_level():
    exact, fast = (TrainTransform(224, kernel=kernel) for kernel in ("exact", "fast"))
    differences = []
    for seed, path in enumerate(some_photos(40)):
        image = decode_image(path)
        one, two = (transform(image, np.random.default_rng(seed)).astype(int) for transform in (exact, fast))
        differences.append(np.abs(one - two).mean())
    assert np.mean(differences) < 0.1


def test_the_fast_kernel_goes_with_every_augmentation_and_refuses_others():
    image = noise(100, 80)
    transform = TrainTransform(32, flip=1.0, color_jitter=0.4, grayscale=1.0, kernel="fast")
    pixels = transform(image, np.random.default_rng(0))
    assert pixels.shape == (3, 32, 32)
    assert np.array_equal(pixels[0], pixels[1])
    with pytest.raises(ConfigError, match="fast kernel does not resize by 'lanczos'"):
        TrainTransform(32, interpolation="lanczos", kernel="fast")(image, np.random.default_rng(0))


def test_colors_are_changed_with_their_probability_and_a_certain_change_draws_nothing_for_it():
    image, size = noise(60, 60), 32
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    plain = TrainTransform(size, **whole)(image, np.random.default_rng(0))
    some = TrainTransform(size, color_jitter=0.5, hue=0.1, color_jitter_prob=0.25, **whole)
    changed = [not np.array_equal(some(image, np.random.default_rng(seed)), plain) for seed in range(400)]
    assert 70 < sum(changed) < 130
    never = TrainTransform(size, color_jitter=0.5, color_jitter_prob=0.0, **whole)
    assert np.array_equal(never(image, np.random.default_rng(1)), plain)
    with pytest.raises(ConfigError, match="--aug-color-jitter-prob goes with"):
        TrainTransform(size, color_jitter_prob=0.5)


def test_hue_turns_colors_and_leaves_gray():
    turn = TrainTransform(32, (1.0, 1.0), hue=0.5)
    gray, red = Image.new("RGB", (32, 32), (90, 90, 90)), Image.new("RGB", (32, 32), (200, 20, 20))
    assert (turn(gray, np.random.default_rng(0)) == 90).all()
    channels = [turn(red, np.random.default_rng(seed))[:, 0, 0].tolist() for seed in range(20)]
    assert len({tuple(item) for item in channels}) > 10
    assert all(max(item) == 200 for item in channels)
