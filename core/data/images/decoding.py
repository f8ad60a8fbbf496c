"""Decoding the contents of one image file to a uint8 array."""

from __future__ import annotations

import io
import math
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchyard.core.data.images.jpeg import decode_plain_jpeg
from torchyard.core.data.images.reading import READING, ImageReading
from torchyard.core.data.images.scaling import draft_side, fits_unchanged, fitted

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

# Raster formats only: Pillow starts other programs for some of the rest (EPS).
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000", "DIB")

# Read in the other order of bytes, Pillow keeps of 16 bits the lower 8 instead of the upper.
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
DEEP_COLOUR = re.compile(r"RGB.?;16[BLN]")
DEEP_GREY = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
GREY_MODES = ("1", "L", "LA", "La", *DEEP_GREY)
SIXTEEN_BITS = (0.0, 65535.0)
ORIENTATION, SIDEWAYS = 0x0112, range(5, 9)  # the EXIF tag, and its values that swap the sides

ANOTHER_SIZE = "of another size"  # the reason begins with it where an image must not be scaled


@dataclass
class Findings:
    """What was found in images while they were decoded.

    Attributes:
        grey: how many files without colour became RGB.
        coloured: how many images with colour became grey.
        colourless: how many files that are saved in colour became grey and have none.
        transparent: how many were laid over the background.
        deep: how many have more than 8 bits.
        least, greatest: value in the deep ones.
        usual_least, usual_greatest: the same without 1 % of each image's pixels at either end.
        animated: how many have further frames or pages, of which none is used.
    """

    grey: int = 0
    coloured: int = 0
    colourless: int = 0
    transparent: int = 0
    deep: int = 0
    least: float = math.inf
    greatest: float = -math.inf
    usual_least: float = math.inf
    usual_greatest: float = -math.inf
    animated: int = 0

    def add(self, more: Findings) -> None:
        """Take in what was found in other images."""
        for name in (field.name for field in fields(self)):
            own, other = getattr(self, name), getattr(more, name)
            joined = own + other
            if name.endswith(("least", "greatest")):
                joined = min(own, other) if name.endswith("least") else max(own, other)
            setattr(self, name, joined)


def decode_image(
    data: bytes,
    shape: tuple[int, int, int],
    resize: bool = True,
    reading: ImageReading = READING,
    findings: Findings | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode one image file to uint8 C x H x W.

    The EXIF orientation is applied; palette, CMYK and 1-bit images are converted; transparent
    ones are laid over `reading.background`; in those of more than 8 bits the values of
    `reading.value_range` (none: 0 to 65535) become 0 to 255; of an animation, the first frame.
    `reading.resize` says how it is scaled (none: squashed).

    Args:
        data: contents of the file.
        shape: (C, H, W); C = 1 is grey, 3 is RGB.
        resize: scale an image of another size, instead of refusing it.
        reading: the settings.
        findings: what this image is like is added to it; grey ones are searched for colour.

    Raises:
        ValueError: the file cannot be decoded to that shape; the message gives the reason.
    """
    channels, height, width = shape
    plain = decode_plain_jpeg(data, shape) if fits_unchanged(reading) else None
    if plain is not None:
        return plain
    with _pillow(reading) as limit:
        # Let libjpeg shrink large images by powers of two while decoding: 3 to 5 times
        # faster. It stops at twice the size, and the filter below does the rest.
        draft = 2 * draft_side(height, width, reading) if resize else None
        image = _converted(data, limit, draft, channels, reading, findings)
        if image.size != (width, height) and not resize:
            raise ValueError(f"{ANOTHER_SIZE}: {image.height}x{image.width}, not {height}x{width}")
        pixels = np.asarray(fitted(image, height, width, reading))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode_part(
    data: bytes,
    part: tuple[int, int, int, int],
    size: tuple[int, int],
    shape: tuple[int, int, int],
    reading: ImageReading = READING,
) -> npt.NDArray[np.uint8]:
    """Decode a part of an image file, scaled to uint8 C x H x W.

    Args:
        data: contents of the file.
        part: top, left, height and width, in pixels of the image as it is displayed.
        size: (height, width) of the image as it is displayed.
        shape: (C, H, W); C = 1 is grey, 3 is RGB.
        reading: the settings.

    Raises:
        ValueError: the file cannot be decoded; the message gives the reason.
    """
    from PIL import Image

    channels, height, width = shape
    top, left, part_height, part_width = part
    shrinking = max(1.0, min(part_height / height, part_width / width))
    with _pillow(reading) as limit:
        draft = max(1, int(min(size) / shrinking))
        image = _converted(data, limit, draft, channels, reading, None)
        down, across = image.height / size[0], image.width / size[1]  # what the draft has left
        box = (
            left * across,
            top * down,
            min(image.width, (left + part_width) * across),
            min(image.height, (top + part_height) * down),
        )
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _converted(
    data: bytes,
    limit: float,
    draft: int | None,
    channels: int,
    reading: ImageReading,
    findings: Findings | None,
) -> PillowImage:
    """An image file upright, with 8 bits, opaque, and grey or RGB; a JPEG perhaps smaller."""
    found = Findings() if findings is None else findings
    image, deep_colour = _opened(data, limit, draft, findings=findings)
    saved_grey = image.mode in GREY_MODES
    if deep_colour or image.mode in DEEP_GREY:
        values = np.asarray(image)
        if deep_colour:
            low, _ = _opened(data, limit, None, low=True)
            values = values.astype(np.uint16) << 8 | np.asarray(low)
        image = _eight_bit(values, reading, found)
    if image.has_transparency_data:
        image = _opaque(image, reading, found)
    if channels == 3:
        found.grey += saved_grey
    elif findings is not None and image.mode not in ("1", "L"):
        image = image.convert("RGB")
        coloured = _has_colour(image)
        found.coloured += coloured
        found.colourless += not (coloured or saved_grey)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def measure(data: bytes, reading: ImageReading = READING) -> tuple[int, int, int]:
    """(height, width) of an image file as it is displayed, and the channels of a plain JPEG.

    A plain one, of 1 or 3 channels, is upright as it is stored; of all other files it is 0.

    Raises:
        ValueError: it cannot be read.
    """
    from PIL import Image

    with _pillow(reading):
        image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
        turn = image.getexif().get(ORIENTATION, 1)
    height, width = image.size if turn in SIDEWAYS else image.size[::-1]
    upright = image.format == "JPEG" and turn not in range(2, 9)
    return height, width, {"L": 1, "RGB": 3}.get(image.mode, 0) if upright else 0


def _opened(
    data: bytes,
    limit: float,
    draft: int | None,
    low: bool = False,
    findings: Findings | None = None,
) -> tuple[PillowImage, bool]:
    """Open an image file and turn it upright; also whether it has 16 bits for each colour.

    Args:
        limit: pixels at most.
        draft: a JPEG may be decoded smaller, but not below this side.
        low: of 16 bits for each colour, read the lower 8.
        findings: whether there are further frames is added to it. Those of a JPEG are previews
            and other views, which are no animation.
    """
    from PIL import Image, ImageOps

    if not data:
        raise ValueError("the file is empty")
    image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > limit:
        raise ValueError(
            f"too large: {image.height}x{image.width}; dataset.max_pixels sets the limit"
        )
    if draft and image.format in ("JPEG", "MPO"):
        image.draft(None, (draft, draft))
    if findings is not None and image.format not in ("JPEG", "MPO"):
        findings.animated += getattr(image, "is_animated", False)
    sixteen = image.mode.startswith("RGB") and any(
        DEEP_COLOUR.fullmatch(_raw(tile)) for tile in image.tile
    )
    if low:
        image.tile = [tile._replace(args=_in_other_order(tile)) for tile in image.tile]
    # A JPEG's header says whether it has EXIF data; looking for it costs a third of decoding.
    if image.format != "JPEG" or "exif" in image.info or "xmp" in image.info:
        image = ImageOps.exif_transpose(image)
    return image, sixteen


def _raw(tile: Any) -> str:
    """How the bytes of a part of an image stand for its pixels, in Pillow's words: "RGB;16B"."""
    return tile.args if isinstance(tile.args, str) else str((tile.args or ("",))[0])


def _in_other_order(tile: Any) -> Any:
    raw = _raw(tile)
    other = raw[:-1] + OTHER_ORDER[raw[-1]]
    return other if isinstance(tile.args, str) else (other, *tile.args[1:])


def _eight_bit(values: npt.NDArray[Any], reading: ImageReading, found: Findings) -> PillowImage:
    """An 8-bit image of deeper values: Pillow's own conversion clips them, or drops 8 bits.

    Args:
        values: H x W, or H x W x 3; x 4 with transparency, as 16 bits.
    """
    from PIL import Image

    colours = values[..., :3] if values.ndim == 3 else values
    least, greatest = float(colours.min()), float(colours.max())
    if not math.isfinite(greatest - least):
        raise ValueError("its pixels are not all finite numbers")
    usual_least, usual_greatest = map(float, np.percentile(colours, (1, 99)))
    found.add(Findings(0, 0, 0, 0, 1, least, greatest, usual_least, usual_greatest))
    low, high = reading.value_range or SIXTEEN_BITS
    # 256 steps of equal width: of 0 to 65535, these are the upper 8 bits.
    step = (high - low + (values.dtype.kind != "f")) / 256 or 1.0
    pixels = np.clip((colours - low) / step, 0, 255).astype(np.uint8)
    if values.shape[2:] == (4,):
        pixels = np.dstack([pixels, values[..., 3] >> 8])
    return Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8))


def _opaque(image: PillowImage, reading: ImageReading, found: Findings) -> PillowImage:
    """Lay a transparent image over the background."""
    from PIL import Image

    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    found.transparent += 1
    ground = Image.new("RGBA", image.size, reading.background)
    return Image.alpha_composite(ground, image).convert("RGB")


def _has_colour(image: PillowImage) -> bool:
    """Whether any pixel of an RGB image is not grey."""
    from PIL import ImageChops

    red, *others = image.split()
    return any(ImageChops.difference(red, other).getbbox() for other in others)


class _NoPillowLimit:
    """While any thread is within, Pillow neither refuses large images nor warns of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: float = math.inf

    def __enter__(self) -> float:
        """Returns the limit: Pillow warns of what is larger, and refuses what is twice as large."""
        from PIL import Image

        with self._lock:
            if not self._inside:
                self._limit = 2 * (Image.MAX_IMAGE_PIXELS or math.inf)
                Image.MAX_IMAGE_PIXELS = None
            self._inside += 1
        return self._limit

    def __exit__(self, *_: object) -> None:
        from PIL import Image

        with self._lock:
            self._inside -= 1
            if not self._inside:
                half = self._limit / 2
                Image.MAX_IMAGE_PIXELS = int(half) if math.isfinite(half) else None


_no_pillow_limit = _NoPillowLimit()


@contextmanager
def _pillow(reading: ImageReading) -> Iterator[float]:
    """Pillow with our limit of pixels, which it yields, and a ValueError for all that it raises."""
    from PIL import ImageFile, UnidentifiedImageError

    ImageFile.LOAD_TRUNCATED_IMAGES = False  # half an image is an error, whatever a plugin set
    try:
        with _no_pillow_limit as limit:
            yield reading.max_pixels or limit
    except UnidentifiedImageError:
        raise ValueError("not an image, or of a format that is not supported") from None
    except Exception as error:
        # Pillow's readers raise nearly anything on damaged files (OSError, SyntaxError,
        # struct.error, IndexError ...).
        raise ValueError(str(error) or type(error).__name__) from None
