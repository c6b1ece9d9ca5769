"""What real files hold becomes an upright RGB image, or an error of one line."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diptych.errors import RecordError
from diptych.image import decode_image
from diptych.image.decode import _fast_jpeg, _simplejpeg

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width=40, height=30):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(orientation, kind):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient(), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    decoded = decode_image(data)
    assert decoded.size == expected.size
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(expected)).max() <= 1


def test_transparent_parts_become_white():
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (*RED, 255))
    assert [decode_image(encoded(clear)).getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]


def test_gray_with_alpha_and_palette_with_transparency_become_white():
    assert decode_image(encoded(Image.new("LA", (1, 1), (0, 0)))).getpixel((0, 0)) == WHITE
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([*BLUE, *RED])
    palette.putpixel((1, 0), 1)
    image = decode_image(encoded(palette, transparency=0))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]


def test_palettes_cmyk_and_one_bit_become_rgb():
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([*BLUE])
    assert decode_image(encoded(palette)).getpixel((0, 0)) == BLUE
    cmyk = decode_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")).getpixel((8, 8))
    assert np.abs(np.array(cmyk) - RED).max() < 12
    assert decode_image(encoded(Image.new("1", (1, 1), 1))).getpixel((0, 0)) == WHITE


def test_sixteen_bit_gray_is_scaled_not_clipped():
    values = np.array([[0, 32896, 65535]], dtype=np.uint16)
    image = decode_image(encoded(Image.fromarray(values)))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    for kind in ("GIF", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert decode_image(data).getpixel((1, 1)) == RED


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_file_cut_short_is_one_line(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(RecordError) as caught:
        decode_image(data[: int(len(data) * share)], "a.jpg")
    assert str(caught.value).startswith("a.jpg: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"hello", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "truncated|not an image"),
        (b"\xff\xd8\xff\xe0" + b"\x00" * 20, "truncated|not an image"),
    ],
)
def test_what_is_no_image_says_what_it_looks_like(data, expected):
    with pytest.raises(RecordError, match=expected):
        decode_image(data, "x")


def test_an_absurdly_large_picture_is_refused_before_it_costs_memory():
    # A PNG header may claim any size: 60,000 x 60,000 would be 10 GB of RGB.
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(RecordError, match=r"more than the limit|larger than"):
        decode_image(data + encoded(gradient())[33:], "bomb.png")
    with pytest.raises(RecordError, match="40 x 30 pixels, more than the limit of 1,000"):
        decode_image(encoded(gradient()), "small.png", max_pixels=1000)


def test_a_missing_file_says_where_it_looked(tmp_path):
    with pytest.raises(RecordError, match="no such image file"):
        decode_image(tmp_path / "none.jpg", "none.jpg")


def test_random_damage_never_escapes_as_another_error():
    rng = np.random.default_rng(1)
    originals = [encoded(gradient(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")]
    for data in originals:
        for _ in range(60):
            broken = bytearray(data)
            for index in rng.integers(0, len(broken), 6):
                broken[index] = rng.integers(0, 256)
            with contextlib.suppress(RecordError):
                assert decode_image(bytes(broken), "x").mode == "RGB"


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_the_fast_jpeg_path_gives_pillows_pixels(subsampling):
    if _simplejpeg() is None:
        pytest.skip("simplejpeg is not installed")
    rng = np.random.default_rng(subsampling)
    blocks = rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)
    data = encoded(
        Image.fromarray(blocks).resize((117, 75), Image.Resampling.BICUBIC), "JPEG", quality=85, subsampling=subsampling
    )
    fast = _fast_jpeg(data, Image.open(io.BytesIO(data)))
    assert fast is not None
    assert np.array_equal(np.asarray(fast), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
