"""Plain JPEGs, decoded faster than Pillow opens or scales them."""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

# Markers, as in ITU-T T.81, table B.1.
BASELINE, PROGRESSIVE, SCAN = b"\xff\xc0", b"\xff\xc2", b"\xff\xda"
# These, JFIF header, quantization and Huffman tables, restart interval, comment.
PLAIN = {b"\xff%c" % code for code in b"\xc0\xc2\xda\xe0\xdb\xc4\xdd\xfe"}
PLAIN_PIXELS = 1 << 18  # in larger images, parsing the header is a small part of the work
BLOCK = 16  # rows that are stored together, where colours have half the resolution


def decode_plain_jpeg(data: bytes, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8] | None:
    """Decode a small JPEG that needs no conversion; None for all others.

    Pillow parses the header in Python, which is much of the work for a small image.
    """
    from PIL import Image

    channels, height, width = shape
    if data[:2] != b"\xff\xd8" or height * width > PLAIN_PIXELS:
        return None
    header = _segments(data)
    # Metadata may be an orientation, or an inverted CMYK.
    frame = header.get(BASELINE, header.get(PROGRESSIVE))
    if SCAN not in header or header.keys() - PLAIN or frame is None:
        return None
    described = struct.unpack_from(">BHHB", data[frame + 4 : frame + 10].ljust(6))
    if described != (8, height, width, channels):  # the first are the bits of a colour
        return None
    mode = "L" if channels == 1 else "RGB"
    try:
        image = Image.frombytes(mode, (width, height), data, "jpeg", mode, "")
    except (OSError, ValueError):
        return None
    pixels = np.frombuffer(image.tobytes(), np.uint8)  # faster than np.asarray
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)


def decode_jpeg_part(
    data: bytes,
    part: tuple[int, int, int, int],
    size: tuple[int, int],
    shape: tuple[int, int, int],
) -> npt.NDArray[np.uint8]:
    """`decode_part` of a JPEG of 1 or 3 channels that is upright as it is stored.

    It is decoded no further down than the part reaches. simplejpeg and torch take 1.4 times less
    for it than Pillow: both decode by libjpeg-turbo, but Pillow's pixels are of four bytes, and
    torch scales uint8 four times as fast, with the same filter.

    Raises:
        ValueError: the file has a flaw, of which Pillow may overlook some.
    """
    import simplejpeg
    import torch

    top, left, height, width = part
    shrinking = max(1.0, min(height / shape[1], width / shape[2]))
    # Colours at the lower end are interpolated with those of the next row.
    needed = top + height + 2 * math.ceil(shrinking)
    rows = min(size[0], -(-needed // BLOCK) * BLOCK)
    shorter = _shortened(data, rows) if rows < size[0] else None
    if shorter is None:
        rows = size[0]
    eighths = math.ceil(8 / shrinking) if shrinking >= 2 else 8  # libjpeg's scales
    least = [-(-side * eighths // 8) for side in (rows, size[1])]
    pixels = simplejpeg.decode_jpeg(
        shorter or data,
        "GRAY" if shape[0] == 1 else "RGB",
        min_height=least[0],
        min_width=least[1],
        min_factor=2,
        strict=shorter is None,  # what is left over would be a flaw
    )
    down, across = (
        slice(start * eighths // 8, -(-(start + length) * eighths // 8))
        for start, length in ((top, height), (left, width))
    )
    region = torch.from_numpy(pixels[down, across]).permute(2, 0, 1)[None]
    scaled = torch.nn.functional.interpolate(region, shape[1:], mode="bilinear", antialias=True)
    return np.asarray(scaled[0].numpy())


def _shortened(data: bytes, rows: int) -> bytes | None:
    """A JPEG whose header says that it has only so many rows: those are decoded, as ever.

    libjpeg decodes from the top and cannot start further down. None: the file is not of one pass
    over all rows, as progressive ones are.
    """
    header = _segments(data)
    if BASELINE not in header or SCAN not in header:
        return None
    frame, scan = header[BASELINE], header[SCAN]
    if data[scan + 4 : scan + 5] != data[frame + 9 : frame + 10]:  # components; or several passes
        return None
    return data[: frame + 5] + rows.to_bytes(2, "big") + data[frame + 7 :]


def _segments(data: bytes) -> dict[bytes, int]:
    """Where the segments of a JPEG's header begin, by their markers, up to the first scan.

    After the marker come two bytes of length; in a frame precision, height, width, components.
    """
    found: dict[bytes, int] = {}
    position = 2
    while SCAN not in found and (marker := data[position : position + 2])[:1] == b"\xff":
        found[marker] = position
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return found
