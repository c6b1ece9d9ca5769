"""The compiled kernels give Pillow's pixels to the last bit, whatever the sizes; without numba nothing changes but the time."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diptych.image import EvalTransform, TrainTransform, decode_pixels, resize
from tests.photos import needs_photos, some_photos

SIDES = st.integers(1, 90)


@pytest.fixture
def compiled(monkeypatch):
    monkeypatch.setattr(resize, "_compiled", [])
    resize.compile_kernels(None)
    assert resize._compiled, "numba is one of the tests' packages"
    return resize._compiled[0]


def pillows(pixels, size, kernel, part=None):
    made = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, resize.KERNELS[kernel])
    return np.asarray(made.crop(part or (0, 0, *size))).transpose(2, 0, 1)


@given(
    given=st.tuples(SIDES, SIDES), wanted=st.tuples(SIDES, SIDES), seed=st.integers(0, 9),
    kernel=st.sampled_from(["bicubic", "bilinear", "lanczos"]), extremes=st.booleans(),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_every_size_gives_pillows_bits(given, wanted, seed, kernel, extremes):
    from diptych.image import _kernels

    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (given[1], given[0], 3), dtype=np.uint8)
    if extremes:  # where sums leave 0 to 255 and are clipped
        pixels = (pixels > 127).astype(np.uint8) * 255
    made = _kernels.resized(pixels, wanted, (0, 0, *wanted), kernel)
    assert np.array_equal(made, pillows(pixels, wanted, kernel))


@given(seed=st.integers(0, 2**20), kernel=st.sampled_from(["bicubic", "bilinear", "lanczos"]))
@settings(max_examples=100, deadline=None)
def test_a_part_is_that_part_of_the_whole(seed, kernel):
    from diptych.image import _kernels

    rng = np.random.default_rng(seed)
    height, width, high, wide = rng.integers(1, 60, 4)
    left, top = int(rng.integers(wide)), int(rng.integers(high))
    part = (left, top, int(rng.integers(left + 1, wide + 1)), int(rng.integers(top + 1, high + 1)))
    # A crop of a larger image, that may not be written to: what decoders and transforms hand over.
    large = rng.integers(0, 256, (height + 5, width + 4, 3), dtype=np.uint8)
    large.flags.writeable = False
    pixels = large[2 : 2 + height, 3 : 3 + width]
    made = _kernels.resized(pixels, (int(wide), int(high)), part, kernel)
    assert made.flags.c_contiguous
    assert np.array_equal(made, pillows(pixels, (int(wide), int(high)), kernel, part))


@needs_photos
def test_both_transforms_are_the_same_with_and_without(compiled, monkeypatch):
    transforms = [EvalTransform(224), EvalTransform(224, "squash", "bilinear"), EvalTransform(96, "longest", "lanczos")]
    photos = [decode_pixels(path) for path in some_photos(12)]

    def all_of():
        seen = [transform(photo).numpy() for photo in photos for transform in transforms]
        crops = [TrainTransform(160, (0.3, 1.0))(photo, np.random.default_rng(n)) for n, photo in enumerate(photos)]
        return seen + crops

    with_numba = all_of()
    monkeypatch.setattr(resize, "_compiled", [])
    assert all(np.array_equal(one, two) for one, two in zip(with_numba, all_of(), strict=True))


def test_a_few_pictures_do_not_import_numba():
    code = (
        "import sys, numpy as np; from diptych.image import EvalTransform, compile_kernels; compile_kernels(100); "
        "EvalTransform(8)(np.zeros((9, 12, 3), np.uint8)); assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_numba_pillow_does_the_work():
    code = (
        "import sys; sys.modules['numba'] = None; import numpy as np; from diptych.image import EvalTransform, compile_kernels; "
        "compile_kernels(None); assert EvalTransform(8)(np.full((9, 12, 3), 7, np.uint8)).unique().tolist() == [7]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("shape", [(3000, 25), (2600, 26), (2601, 26), (5000, 7), (25, 3000), (900, 1), (1, 900)])
def test_tall_strips_too(compiled, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for size in ((64, 64), (10, shape[0]), (30, 2 * shape[0] // 3 + 1)):
        made = resize.resize(pixels, size, "bicubic")
        assert np.array_equal(made, pillows(pixels, size, "bicubic"))


def test_what_would_read_beyond_its_array_is_refused(compiled):
    for shape, part in (((9, 9, 1), (0, 0, 4, 4)), ((9, 9, 3), (0, 0, 5, 4)), ((9, 9, 4), (0, 0, 4, 4))):
        with pytest.raises(ValueError, match="beyond"):
            compiled.resized(np.zeros(shape, np.uint8), (4, 4), part, "bicubic")
