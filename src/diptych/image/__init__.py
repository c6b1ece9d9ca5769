"""Bytes to pixels: decoding that survives odd files, transforms that stay uint8 to the end, and views by name.

Normalizing is not done here: mean and std live in the image tower, so pixels and weights cannot be mismatched.
"""

from diptych.image._endings import image_endings
from diptych.image.colors import compile_color_kernels
from diptych.image.decode import MAX_PIXELS, Decoded, decode, decode_image, decode_pixels
from diptych.image.pixels import AnyImage, pixels_of
from diptych.image.resize import compile_kernels
from diptych.image.strong import RECIPES as STRONG_RECIPES
from diptych.image.strong import StrongOptions, StrongTransform
from diptych.image.transforms import EvalTransform, TrainTransform
from diptych.image.views import VIEWS, ImageView, ViewOptions

__all__ = [
    "MAX_PIXELS",
    "STRONG_RECIPES",
    "VIEWS",
    "AnyImage",
    "Decoded",
    "EvalTransform",
    "ImageView",
    "StrongOptions",
    "StrongTransform",
    "TrainTransform",
    "ViewOptions",
    "compile_color_kernels",
    "compile_kernels",
    "decode",
    "decode_image",
    "decode_pixels",
    "image_endings",
    "pixels_of",
]
