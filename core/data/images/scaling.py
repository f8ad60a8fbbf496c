"""How an image of any shape becomes one of the input size: bilinear and antialiased, by Pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchyard.core.data.images.reading import ImageReading

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage


def fits_unchanged(reading: ImageReading) -> bool:
    """Whether an image that has the input size already stays as it is."""
    return reading.resize != "crop" or reading.crop_ratio == 1


def draft_side(height: int, width: int, reading: ImageReading) -> int:
    """The shorter side that a whole image needs at least, for an input of this size."""
    ratio = reading.crop_ratio if reading.resize == "crop" else 1.0
    return round(max(height, width) / ratio)


def fitted(image: PillowImage, height: int, width: int, reading: ImageReading) -> PillowImage:
    """An image, grey or RGB, scaled to height x width as `reading.resize` says (none: squashed)."""
    from PIL import Image

    if image.size == (width, height) and fits_unchanged(reading):
        return image
    if reading.resize == "pad":
        return _padded(image, height, width, reading.background)
    box = None
    if reading.resize == "crop":
        box = _middle(image.size, (width, height), reading.crop_ratio)
    return image.resize((width, height), Image.Resampling.BILINEAR, box)


def _middle(
    size: tuple[int, int], target: tuple[int, int], ratio: float
) -> tuple[float, float, float, float]:
    """The largest box of the target's shape in the middle, its sides times `ratio`."""
    scale = ratio * min(side / wanted for side, wanted in zip(size, target, strict=True))
    box_width, box_height = (
        min(side, scale * wanted) for side, wanted in zip(size, target, strict=True)
    )
    left, top = (size[0] - box_width) / 2, (size[1] - box_height) / 2
    return left, top, min(size[0], left + box_width), min(size[1], top + box_height)


def _padded(
    image: PillowImage, height: int, width: int, background: tuple[int, int, int]
) -> PillowImage:
    from PIL import Image

    scale = min(width / image.width, height / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    ground = Image.new("RGB", (width, height), background).convert(image.mode)
    scaled = image.resize(inner, Image.Resampling.BILINEAR)
    ground.paste(scaled, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return ground
