"""Pixels prepared otherwise than the architecture says: what the flags change, what the weights keep, what is refused."""

import numpy as np
import pytest
import torch

from diptych import weights
from diptych.errors import ConfigError
from diptych.models import create_model
from diptych.train.changes import ModelOptions, changes_of

from .test_changes import changed


def test_pixels_are_prepared_as_the_flags_say_and_the_weights_keep_it(tmp_path):
    options = ModelOptions(
        image_mean=(0.5,), image_std=(0.1, 0.2, 0.3), image_interpolation="bilinear", image_resize_mode="squash"
    )
    model = changed(options)[0]
    weights.save(tmp_path / "m.safetensors", model)
    for built in (model, weights.load(tmp_path / "m.safetensors")):
        preprocess = built.config.preprocess
        assert preprocess.mean == (0.5, 0.5, 0.5)
        assert (preprocess.std, preprocess.interpolation, preprocess.resize_mode) == (
            (0.1, 0.2, 0.3),
            "bilinear",
            "squash",
        )
        assert weights.eval_transform(built.config).resize_mode == "squash"
        size = built.config.vision.image_size
        pixels = built.image.normalize(torch.full((1, 3, size, size), 255, dtype=torch.uint8))
        torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([5.0, 2.5, 0.5 / 0.3]))


@pytest.mark.parametrize("forced", [0, 48])
def test_images_are_resized_somewhat_larger_than_the_crop_where_that_is_asked_for(tmp_path, forced):
    """DeCLIP's Resize 256, crop 224, at the size of a small model; what is given is not scaled by --force-image-size."""
    from PIL import Image

    model = changed(ModelOptions(image_resize_to=56, force_image_size=forced, image_interpolation="bilinear"))[0]
    weights.save(tmp_path / "m.safetensors", model)
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    size = forced or 32
    top, left = (56 - size) // 2, round((74 - size) / 2)
    expected = np.asarray(Image.fromarray(noise).resize((74, 56), Image.Resampling.BILINEAR))
    for built in (model, weights.load(tmp_path / "m.safetensors")):
        assert built.config.preprocess.resize_to == 56
        pixels = weights.eval_transform(built.config)(noise).numpy().transpose(1, 2, 0)
        assert np.array_equal(pixels, expected[top : top + size, left : left + size])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_resize_to": 31}, "--image-resize-to 31: the model takes 32 pixels of it; give at least 32"),
        ({"image_resize_to": 40, "image_resize_mode": "squash"}, "--image-resize-mode shortest.*not with squash"),
        ({"image_resize_to": 40, "force_image_size": 48}, "at least 48"),
    ],
)
def test_a_resize_that_no_crop_fits_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        changed(ModelOptions(**values))


def test_another_preprocessing_than_the_weights_had_is_said(tmp_path, capsys):
    weights.save(tmp_path / "m.safetensors", create_model("tiny-test"))
    options = ModelOptions(pretrained=str(tmp_path / "m.safetensors"), image_mean=(0.25,))
    (change,) = changes_of(options, resumed=False)
    model = weights.create("tiny-test", options.pretrained)
    change.after_weights(model, options)
    assert model.image.mean.flatten().tolist() == [0.25, 0.25, 0.25]
    assert "trained with another preprocessing" in capsys.readouterr().err
