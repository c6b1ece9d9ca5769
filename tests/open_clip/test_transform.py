"""Pixels of the package's transforms beside open_clip's, bit for bit; and, without it, what they give and refuse."""

import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.errors import ConfigError
from diptych.image import EvalTransform
from diptych.open_clip import transform as ours
from diptych.open_clip.constants import INCEPTION_MEAN, INCEPTION_STD, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from tests.photos import needs_photos, some_photos

MODES = ["RGB", "L", "LA", "RGBA", "P", "CMYK", "I;16", "1", "I", "F", "YCbCr"]
SIZES = [(61, 40), (40, 61), (32, 32), (5, 90), (224, 31), (1, 1), (333, 500)]
RECIPES = [
    {"image_size": 32},
    {"image_size": 32, "interpolation": "bilinear"},
    {"image_size": 32, "interpolation": "random"},
    {"image_size": 33, "resize_mode": "squash"},
    {"image_size": 33, "resize_mode": "longest", "fill_color": 7},
    {"image_size": (24, 40)},
    {"image_size": (24, 40), "interpolation": "bilinear"},
    {"image_size": (40, 24), "resize_mode": "squash", "interpolation": "bilinear"},
    {"image_size": (40, 24), "resize_mode": "longest", "interpolation": "bilinear"},
    {"image_size": [32, 32], "mean": INCEPTION_MEAN, "std": INCEPTION_STD},
    {"image_size": 32, "mean": 0.5, "std": 0.25},
]


def image_of(mode: str, size: tuple[int, int]) -> Image.Image:
    """Noise with edges, in a mode."""
    values = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    values[: size[1] // 2] //= 4
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    if mode in ("RGBA", "CMYK"):
        return Image.frombytes(mode, size, values.tobytes())
    colors = Image.fromarray(values[..., :3])
    return colors.quantize(17) if mode == "P" else colors.convert(mode)


def outcome(transform, image):
    """What a transform gives, or the class of its refusal."""
    try:
        return transform(image)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        return ValueError if isinstance(error, ValueError) else type(error)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_evaluation_gives_open_clips_pixels_in_every_mode(peer, mode, recipe):
    theirs, own = peer.image_transform(is_train=False, **recipe), ours.image_transform(is_train=False, **recipe)
    for size in SIZES:
        expected, given = outcome(theirs, image_of(mode, size)), outcome(own, image_of(mode, size))
        if isinstance(expected, torch.Tensor):
            assert given.dtype == expected.dtype == torch.float32
            assert torch.equal(given, expected), (size, (given - expected).abs().max())
        else:
            assert not isinstance(given, torch.Tensor), (size, expected)


@needs_photos
@pytest.mark.parametrize("recipe", [{"image_size": 224}, {"image_size": 256, "resize_mode": "squash"}], ids=str)
def test_evaluation_gives_open_clips_pixels_on_photos(peer, recipe):
    theirs, own = peer.image_transform(is_train=False, **recipe), ours.image_transform(is_train=False, **recipe)
    for path in some_photos(60):
        with Image.open(path) as image:
            assert torch.equal(own(image), theirs(image)), path


@pytest.mark.parametrize("size", [(61, 40), (40, 61), (9, 80)])
@pytest.mark.parametrize("recipe", RECIPES[:8], ids=str)
def test_tensors_and_arrays_go_where_open_clips_go(peer, recipe, size):
    theirs, own = peer.image_transform(is_train=False, **recipe), ours.image_transform(is_train=False, **recipe)
    pixels = torch.rand(3, size[1], size[0], generator=torch.Generator().manual_seed(2))
    for image in (pixels, pixels.numpy(), (pixels * 255).byte()):
        expected, given = outcome(theirs, image), outcome(own, image)
        if isinstance(expected, torch.Tensor):
            assert torch.equal(given, expected)
        else:
            assert not isinstance(given, torch.Tensor)


AUGMENTATIONS = [
    None,
    {"scale": (0.2, 1.0)},
    {"color_jitter": (0.4, 0.4, 0.4, 0.1), "color_jitter_prob": 0.8},
    {"color_jitter": (0.32, 0.32, 0.32, 0.08), "color_jitter_prob": 0.7, "gray_scale_prob": 0.5, "scale": (0.08, 1.0)},
    {"gray_scale_prob": 1.0},
]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
@pytest.mark.filterwarnings("ignore:Unused augmentation")
def test_a_seed_gives_the_same_training_image_as_in_open_clip(peer, augmentation):
    for size, image_size in (((61, 40), 32), ((300, 20), 24), ((20, 300), (24, 40))):
        image = image_of("RGB", size)
        images = []
        for package in (peer, ours):
            transform = package.image_transform(image_size, is_train=True, aug_cfg=augmentation)
            torch.manual_seed(5)
            random.seed(6)
            images.append([transform(image) for _ in range(20)])
        assert all(torch.equal(a, b) for a, b in zip(*images, strict=True))


@pytest.mark.parametrize(
    "values", [(0.4, 0.3, 0.5, 0.2), (0, 0, 0, 0.5), (0.9, 0, 0, 0), ((0.1, 2), (0.5, 3), (0, 4), (-0.1, 0.3))]
)
def test_colors_of_tensors_and_images_are_torchvisions(peer, values):
    import torchvision.transforms as theirs

    floats = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(2))
    floats[0, :, :3] = floats[0, :1, :3]  # gray
    floats[0, :, 3] = 0
    floats[0, :2, 4] = 1
    images = [floats, floats[0], (floats * 255).byte(), floats[:, :1], floats.double()]
    images += [image_of(mode, (12, 9)) for mode in ("RGB", "L", "YCbCr")]
    for image in images:
        results = []
        for module in (theirs, ours):
            torch.manual_seed(8)
            jitter, gray = module.ColorJitter(*values), module.Grayscale(3)
            results.append([jitter(image) for _ in range(6)] + [gray(image)])
        for expected, given in zip(*results, strict=True):
            assert type(given) is type(expected)
            assert np.array_equal(np.asarray(given), np.asarray(expected))


def test_attributes_and_prints_are_open_clips(peer):
    for is_train in (False, True):
        for recipe in RECIPES:
            theirs, own = (package.image_transform(is_train=is_train, **recipe) for package in (peer, ours))
            assert repr(own) == repr(theirs).replace("), longest", ", longest")  # a parenthesis too many
            assert [type(step).__name__ for step in own.transforms] == [
                type(step).__name__ for step in theirs.transforms
            ]
            for mine, other in zip(own.transforms, theirs.transforms, strict=True):
                for name, value in vars(other).items():
                    if not name.startswith("_") and not isinstance(value, torch.nn.Module):
                        assert getattr(getattr(mine, name), "value", getattr(mine, name)) == getattr(
                            value, "value", value
                        )


@pytest.mark.parametrize("options", [{"longest": 0.3}, {"random_scale_prob": 0.7}, {"random_aspect_prob": 0.5}])
def test_random_sizes_are_open_clips(peer, options):
    image = image_of("RGB", (61, 40))
    sizes = []
    for module in (peer.transform, ours):
        random.seed(4)
        sizes.append([module.ResizeKeepRatio((20, 30), **options)(image).size for _ in range(20)])
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("size", [7, (50, 20), [90], (33, 33)])
def test_center_crops_and_pads_are_open_clips(peer, size):
    for image in (image_of("RGB", (33, 46)), image_of("P", (33, 46)), torch.rand(2, 3, 46, 33)):
        given, expected = (module.center_crop_or_pad(image, size, fill=3) for module in (ours, peer.transform))
        to_compare = [part if isinstance(part, torch.Tensor) else np.asarray(part) for part in (given, expected)]
        assert (to_compare[0] == to_compare[1]).all()


def test_configs_merge_as_in_open_clip(peer):
    overlays = [{}, {"size": 336, "mean": None, "unknown": 3}, {"interpolation": "bilinear", "resize_mode": "squash"}]
    for overlay in overlays:
        for mine, theirs in ((ours.PreprocessCfg(), peer.transform.PreprocessCfg()), ({"size": 3, "other": 1},) * 2):
            assert ours.merge_preprocess_dict(mine, overlay) == peer.transform.merge_preprocess_dict(theirs, overlay)
    assert ours.merge_preprocess_kwargs(ours.PreprocessCfg(), size=(3, 4))["size"] == (3, 4)
    assert ours.PreprocessCfg(size=(3, 4)).input_size == (3, 3, 4)


def test_a_list_of_callables_ends_in_a_normalized_float():
    preprocess = ours.image_transform(32, is_train=False)
    assert [type(step).__name__ for step in preprocess.transforms] == [
        "Resize", "CenterCrop", "MaybeConvertMode", "MaybeToTensor", "Normalize",
    ]  # fmt: skip
    image = image_of("RGB", (61, 40))
    step_by_step = image
    for step in preprocess.transforms:
        step_by_step = step(step_by_step)
    assert torch.equal(preprocess(image), step_by_step)
    assert step_by_step.shape == (3, 32, 32)
    assert step_by_step.dtype == torch.float32
    assert torch.equal(pickle.loads(pickle.dumps(preprocess))(image), step_by_step)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_evaluation_is_the_librarys_own_normalized(mode, size):
    for kernel in ("bicubic", "bilinear"):
        image = image_of("RGB", size)
        pixels = EvalTransform(32, mode, kernel)(image).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
        own = ours.image_transform(32, is_train=False, resize_mode=mode, interpolation=kernel)
        assert torch.equal(own(image), (pixels - mean) / std)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ours.image_transform(32, False, interpolation="lanczos"),
        lambda: ours.image_transform(32, False, resize_mode="fit"),
        lambda: ours.image_transform(32, True, aug_cfg={"use_timm": True}),
        lambda: ours.image_transform(32, True, aug_cfg={"scales": (0.5, 1.0)}),
        lambda: ours.image_transform(32, True, aug_cfg={"color_jitter_prob": 0.5}),
        lambda: ours.image_transform(32, False)("photo.jpg"),
        lambda: ours.Normalize((0.5,) * 3, (0.5, 0.0, 0.5))(torch.zeros(3, 2, 2)),
        lambda: ours.Normalize((0.5,) * 3, (0.5,) * 3)(torch.zeros(3, 2, 2, dtype=torch.uint8)),
        lambda: ours.Resize((1, 2, 3)),
        lambda: ours.ColorJitter(brightness=-1),
        lambda: ours.ColorJitter(hue=0.6),
        lambda: ours.ColorJitter(0.5)(torch.zeros(3, 2, 2, dtype=torch.int32)),
        lambda: ours.ColorJitter(0.5)(np.zeros((2, 2, 3))),
        lambda: ours.gray_scale(1.5),
    ],
)
def test_mistakes_are_one_line(call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_unused_fields_are_said():
    with pytest.warns(UserWarning, match="ratio, re_prob, color_jitter"):
        ours.image_transform(32, True, aug_cfg={"ratio": (0.5, 2.0), "re_prob": 0.3, "color_jitter": 0.4})
    with pytest.warns(UserWarning, match="for evaluation"):
        ours.image_transform(32, False, aug_cfg={"scale": (0.5, 1.0)})


def test_torchvision_is_not_imported():
    code = "import sys, diptych.open_clip.transform; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
