"""Single image files: every kind Pillow reads becomes the array it should."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from torchyard.core.preparation.image_file import decode_image

RNG = np.random.default_rng(7)


def images(count: int, *shape: int) -> Any:
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(height: int, width: int) -> Image.Image:
    return Image.fromarray(images(1, height, width, 3)[0])


def test_image_modes() -> None:
    grey = images(1, 6, 6)[0]
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + images(1, 6, 6)[0])
    np.testing.assert_array_equal(decode_image(encoded(deep), (1, 6, 6))[0], grey)
    np.testing.assert_array_equal(decode_image(encoded(deep), (3, 6, 6))[2], grey)
    palette = photo(6, 6).quantize(4)
    expected = np.moveaxis(np.asarray(palette.convert("RGB")), 2, 0)
    np.testing.assert_array_equal(decode_image(encoded(palette), (3, 6, 6)), expected)
    colours = photo(6, 6)
    expected = np.moveaxis(np.asarray(colours), 2, 0)
    seen_through = colours.copy()
    seen_through.putalpha(3)
    np.testing.assert_array_equal(decode_image(encoded(seen_through), (3, 6, 6)), expected)
    inks = Image.new("CMYK", (6, 6), (255, 0, 0, 0))
    cyan = decode_image(encoded(inks, "JPEG"), (3, 6, 6))[:, 0, 0]
    assert cyan[0] < 90 < 130 < cyan[2]
    bits = Image.fromarray(grey > 99)
    assert set(np.unique(decode_image(encoded(bits), (1, 6, 6)))) == {0, 255}


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_orientation_is_applied(format: str) -> None:
    image = Image.new("RGB", (8, 16), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise: what is at the top belongs to the right
    pixels = decode_image(encoded(image, format, exif=exif), (1, 8, 16), resize=False)[0]
    assert pixels[:, :7].max() < 30
    assert pixels[:, 9:].min() > 220


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "optimize": 1}])
def test_jpegs_are_decoded_as_pillow_does(mode: str, options: dict[str, Any]) -> None:
    data = encoded(photo(12, 9).convert(mode), "JPEG", **options)
    for channels, wanted in ((1, "L"), (3, "RGB")):
        expected = np.asarray(Image.open(io.BytesIO(data)).convert(wanted)).reshape(12, 9, channels)
        got = decode_image(data, (channels, 12, 9), resize=False)
        np.testing.assert_array_equal(got, np.moveaxis(expected, 2, 0))
    for wrong in ((3, 12, 8), (3, 13, 9)):
        with pytest.raises(ValueError, match="of another size: 12x9"):
            decode_image(data, wrong, resize=False)


SOUND = encoded(photo(12, 9), "JPEG")


@settings(max_examples=150, deadline=None)
@for_all(st.data())
def test_a_damaged_jpeg_is_what_pillow_says(data: st.DataObject) -> None:
    content = bytearray(SOUND)
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        expected = np.asarray(Image.open(io.BytesIO(content), formats=["JPEG"]).convert("RGB"))
    except Exception:
        with pytest.raises(ValueError, match=r".+"):
            decode_image(bytes(content), (3, 12, 9))
    else:
        if expected.shape == (12, 9, 3):
            got = decode_image(bytes(content), (3, 12, 9))
            np.testing.assert_array_equal(got, np.moveaxis(expected, 2, 0))


def test_a_large_photograph_is_scaled_over_its_area() -> None:
    steps = np.kron(images(1, 8, 8)[0], np.ones((60, 60), np.uint8))
    photograph = encoded(Image.fromarray(steps), "JPEG", quality=95)
    small = decode_image(photograph, (1, 8, 8))[0].astype(int)
    # The filter reaches half a pixel into the neighbours: near, not equal.
    assert np.abs(small - steps[30::60, 30::60]).mean() < 45
    reference = np.asarray(Image.fromarray(steps).resize((8, 8), Image.Resampling.BILINEAR))
    assert np.abs(small - reference.astype(int)).max() < 12
