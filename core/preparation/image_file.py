"""Decoding the contents of one image file to a uint8 array."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt

# Raster formats only: Pillow starts other programs for some of the rest (EPS).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")

# JFIF header, quantization and Huffman tables, restart interval, comment.
PLAIN_MARKERS = (b"\xff\xe0", b"\xff\xdb", b"\xff\xc4", b"\xff\xdd", b"\xff\xfe")
PLAIN_PIXELS = 1 << 18  # in larger images, parsing the header is a small part of the work

ANOTHER_SIZE = "of another size"  # the reason begins with it where an image must not be scaled


def decode_image(
    data: bytes, shape: tuple[int, int, int], resize: bool = True
) -> npt.NDArray[np.uint8]:
    """Decode one image file to uint8 C x H x W.

    The EXIF orientation is applied; palette, CMYK and 1-bit images are converted; an alpha
    channel is dropped; of 16 bits the upper 8 are kept; of an animation, the first frame.
    Scaling is bilinear and antialiased.

    Args:
        data: contents of the file.
        shape: (C, H, W); C = 1 is grey, 3 is RGB.
        resize: scale an image of another size, instead of refusing it.

    Raises:
        ValueError: the file cannot be decoded to that shape; the message gives the reason.
    """
    from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

    channels, height, width = shape
    if not data:
        raise ValueError("the file is empty")
    plain = _plain_jpeg(data, shape)
    if plain is not None:
        return plain
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # half an image is an error, whatever a plugin set
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
        if resize and image.format == "JPEG":
            # Let libjpeg shrink large images by powers of two while decoding: 3 to 5 times
            # faster. It stops at twice the size, and the filter below does the rest.
            image.draft(None, (2 * max(height, width),) * 2)
        # A JPEG's header says whether it has EXIF data; looking for it costs a third of decoding.
        if image.format != "JPEG" or "exif" in image.info or "xmp" in image.info:
            image = ImageOps.exif_transpose(image)
        image = _eight_bit(image)
        mode = "L" if channels == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        if image.size != (width, height):
            if not resize:
                raise ValueError(
                    f"{ANOTHER_SIZE}: {image.height}x{image.width}, not {height}x{width}"
                )
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    except UnidentifiedImageError:
        raise ValueError("not an image, or of a format that is not supported") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"too large: {error}") from None
    except Exception as error:
        # Pillow's readers raise nearly anything on damaged files (OSError, SyntaxError,
        # struct.error, IndexError ...).
        raise ValueError(str(error) or type(error).__name__) from None
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _plain_jpeg(data: bytes, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8] | None:
    """Decode a small JPEG that needs no conversion; None for all others.

    Pillow parses the header in Python, which is much of the work for a small image. The markers
    are in ITU-T T.81, table B.1.
    """
    from PIL import Image

    channels, height, width = shape
    if data[:2] != b"\xff\xd8" or height * width > PLAIN_PIXELS:
        return None
    position, fits = 2, False
    while (marker := data[position : position + 2]) != b"\xff\xda":  # start of scan: the pixels
        if marker in (b"\xff\xc0", b"\xff\xc2"):  # frame: precision, height, width, components
            frame = struct.unpack_from(">xxBHHB", data[position + 2 : position + 10].ljust(8))
            fits = frame == (8, height, width, channels)
        elif marker not in PLAIN_MARKERS:  # metadata: an orientation, or an inverted CMYK
            return None
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    if not fits:
        return None
    mode = "L" if channels == 1 else "RGB"
    try:
        image = Image.frombytes(mode, (width, height), data, "jpeg", mode, "")
    except (OSError, ValueError):
        return None
    pixels = np.frombuffer(image.tobytes(), np.uint8)  # faster than np.asarray
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def _eight_bit(image: Any) -> Any:
    """Convert deeper grey images to 8 bits; Pillow's own conversion would clip them at 255."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ValueError("its pixels have more than 16 bits")
    return Image.fromarray((pixels >> 8).astype(np.uint8))
