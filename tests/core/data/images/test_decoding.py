"""Single image files: every kind Pillow reads becomes the array it should."""

from __future__ import annotations

import io
import struct
from typing import Any
from zlib import compress, crc32

import numpy as np
import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from torchyard.core.data.images.decoding import Findings, decode_image
from torchyard.core.data.images.reading import ImageReading

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
    covering = colours.copy()
    covering.putalpha(255)
    np.testing.assert_array_equal(decode_image(encoded(covering), (3, 6, 6)), expected)
    inks = Image.new("CMYK", (6, 6), (255, 0, 0, 0))
    cyan = decode_image(encoded(inks, "JPEG"), (3, 6, 6))[:, 0, 0]
    assert cyan[0] < 90 < 130 < cyan[2]
    bits = Image.fromarray(grey > 99)
    assert set(np.unique(decode_image(encoded(bits), (1, 6, 6)))) == {0, 255}


def drawing(mode: str) -> Image.Image:
    """A black square on a transparent ground that is black, too."""
    image = Image.new("LA" if mode == "LA" else "RGBA", (6, 4))
    image.paste((0, 255) if mode == "LA" else (0, 0, 0, 255), (0, 0, 2, 4))
    return image.quantize(4) if mode == "P" else image


@pytest.mark.parametrize(
    ("mode", "format"),
    [("RGBA", "PNG"), ("RGBA", "TIFF"), ("RGBA", "WEBP"), ("RGBA", "GIF"), ("LA", "PNG"),
     ("LA", "TIFF"), ("P", "PNG"), ("L", "PNG"), ("RGB", "PNG"), ("1", "PNG")],
)  # fmt: skip
def test_what_is_transparent_lies_over_the_background(mode: str, format: str) -> None:
    if mode in ("L", "RGB", "1"):  # one colour is transparent
        image = Image.new(mode, (6, 4), "white")
        image.paste("black", (0, 0, 2, 4))
        options: dict[str, Any] = {"transparency": (255,) * 3 if mode == "RGB" else 255}
        if mode == "1":
            options = {"transparency": 1}
        data = encoded(image, format, **options)
    else:
        data = encoded(drawing(mode), format, **({"lossless": True} if format == "WEBP" else {}))
    expected = np.zeros((3, 4, 6), np.uint8)
    for background in ((255, 255, 255), (9, 99, 199)):
        expected[:, :, 2:] = np.array(background)[:, None, None]
        found = Findings()
        got = decode_image(data, (3, 4, 6), reading=ImageReading(background=background))
        np.testing.assert_array_equal(got, expected)
    decode_image(data, (1, 4, 6), findings=found)
    assert (found.transparent, found.coloured) == (1, 0)


def sixteen_bits(values: Any) -> bytes:
    """A PNG of H x W x 3 or 4 values of 16 bits, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = ((b"IHDR", header), (b"IDAT", compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_deep_images_are_scaled_by_a_range_of_values() -> None:
    values = RNG.integers(1000, 1512, (6, 7, 3))
    values[0, 0], values[0, 1] = 1000, 1511
    reading, found = ImageReading(value_range=(1000, 1511)), Findings()
    expected = np.moveaxis((values - 1000) // 2, 2, 0).astype(np.uint8)
    grey = {
        "I;16": encoded(Image.fromarray(values[..., 0].astype(np.uint16))),
        "I;16B": encoded(Image.fromarray(values[..., 0].astype(">u2")), "TIFF"),
        "I": encoded(Image.fromarray(values[..., 0].astype(np.int32)), "TIFF"),
        "LZW": encoded(
            Image.fromarray(values[..., 0].astype(np.uint16)), "TIFF", compression="tiff_lzw"
        ),
    }
    for name, data in grey.items():
        got = decode_image(data, (1, 6, 7), reading=reading, findings=found)
        np.testing.assert_array_equal(got, expected[:1], err_msg=name)
    got = decode_image(sixteen_bits(values), (3, 6, 7), reading=reading, findings=found)
    np.testing.assert_array_equal(got, expected)
    assert (found.deep, found.least, found.greatest) == (5, 1000, 1511)
    half = np.dstack([values, np.full((6, 7), 0)])  # nothing of it is seen
    assert decode_image(sixteen_bits(half), (3, 6, 7), reading=reading).min() == 255
    shares = Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16))
    got = decode_image(
        encoded(shares, "TIFF"), (1, 16, 16), reading=ImageReading(value_range=(0, 1))
    )
    np.testing.assert_allclose(got.ravel(), np.arange(256), atol=1)
    lost = Image.fromarray(np.full((3, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="not all finite numbers"):
        decode_image(encoded(lost, "TIFF"), (1, 3, 3))


def test_grey_is_told_from_colour_by_pixels() -> None:
    grey = photo(6, 6).convert("L")
    one = grey.convert("RGB")
    one.putpixel((5, 5), (10, 10, 11))
    alike = {"L": grey, "RGB": grey.convert("RGB"), "P": grey.quantize(9), "1": grey.convert("1")}
    for name, image in alike.items():
        found = Findings()
        decode_image(encoded(image), (1, 6, 6), findings=found)
        assert found.coloured == 0, name
        assert found.colourless == (name in ("RGB", "P")), name
    for image in (one, one.quantize(36), photo(6, 6).convert("CMYK")):
        format, found = "TIFF" if image.mode == "CMYK" else "PNG", Findings()
        decode_image(encoded(image, format), (1, 6, 6), findings=found)
        assert found.coloured == 1


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_orientation_is_applied(format: str) -> None:
    image = Image.new("RGB", (8, 16), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise: what is at the top belongs to the right
    pixels = decode_image(encoded(image, format, exif=exif), (1, 8, 16), resize=False)[0]
    assert pixels[:, :7].max() < 30
    assert pixels[:, 9:].min() > 220


def test_orientation_is_applied_to_a_jpeg_of_the_wanted_size() -> None:
    image = Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 8, axis=0).repeat(16, 1))
    exif = Image.Exif()
    exif[0x0112] = 3  # shown upside down
    pixels = decode_image(encoded(image, "JPEG", exif=exif), (1, 16, 16))[0]
    assert pixels[0].min() > 200 > 50 > pixels[-1].max()


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
