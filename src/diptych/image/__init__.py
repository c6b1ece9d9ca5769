"""Bytes to pixels: decoding that survives odd files, and transforms that stay uint8 to the end.

Normalising is not done here: mean and std live in the image tower, so pixels and weights cannot be mismatched.
"""

from diptych.image.decode import MAX_PIXELS, decode_image, decode_pixels
from diptych.image.resize import compile_kernels
from diptych.image.transforms import EvalTransform, TrainTransform

__all__ = ["MAX_PIXELS", "EvalTransform", "TrainTransform", "compile_kernels", "decode_image", "decode_pixels"]
