"""Augmentations of images: random crops, flips and erased squares, a whole batch at a time.

Each draws its random numbers once per batch and reads every pixel once; there is no loop over
samples and no synchronization with the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from torchyard import Augmentation, AugmentationParams, Register, hookimpl

if TYPE_CHECKING:
    import torch

HASH_FACTOR, HASH_MASK = 82_951_111, 0xFFFFFFFF  # 2^27 over the golden ratio; 32 bits


def _image_shape(input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise ValueError("changes images, not vectors")
    channels, height, width = input_shape
    return channels, height, width


def _check_side(name: str, value: int, shorter: int) -> None:
    if value >= shorter:
        raise ValueError(f"{name}={value} must be less than the shorter side, {shorter} pixels")


class RandomCrop(AugmentationParams):
    """Shift each image by up to `padding` pixels each way: pad, then crop to the same size.

    He et al., arXiv:1512.03385, section 4.2, pad with zeros. "reflect" mirrors the image at its
    border instead, so that the network sees no black edges.
    """

    padding: PositiveInt = Field(4, description="pixels on each side")
    mode: Literal["reflect", "zeros"] = Field("reflect", description="values beyond the border")

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the crop; the padding must be less than either side of the images."""
        import torch

        channels, height, width = _image_shape(input_shape)
        padding, mode = self.padding, self.mode
        _check_side("padding", padding, min(height, width))

        def crop(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            count, device = len(samples), samples.device
            shifts = torch.randint(-padding, padding + 1, (2, count, 1), device=device)
            # The source of each row and column of the result. Padding would be a copy, and
            # torch's does not take uint8.
            rows = torch.arange(height, device=device) + shifts[0]
            columns = torch.arange(width, device=device) + shifts[1]
            last_row, last_column = height - 1, width - 1
            if mode == "reflect":
                near_row = last_row - (last_row - rows.abs()).abs()
                near_column = last_column - (last_column - columns.abs()).abs()
            else:
                near_row, near_column = rows.clamp(0, last_row), columns.clamp(0, last_column)
            pixel = (near_row[:, :, None] * width + near_column[:, None, :]).flatten(1)
            cropped = samples.flatten(2).gather(2, pixel[:, None].expand(-1, channels, -1))
            cropped = cropped.view(samples.shape)
            if mode == "zeros":
                outside = (rows != near_row)[:, :, None] | (columns != near_column)[:, None, :]
                cropped.masked_fill_(outside[:, None], 0)
            return cropped

        return crop


class HorizontalFlip(AugmentationParams):
    """Mirror each image left to right with probability p."""

    p: float = Field(0.5, ge=0, le=1, description="probability")

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the flip."""
        import torch

        _image_shape(input_shape)
        p = self.p

        def flip(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            return _flipped(samples, torch.rand(len(samples), device=samples.device) < p)

        return flip


class AlternatingFlip(AugmentationParams):
    """Mirror half the images in odd epochs and the other half in even ones.

    Two consecutive epochs show every image both ways, where random flips repeat half of them
    (Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv:2404.00498). Which half
    is mirrored first is a function of index and seed.
    """

    seed: int = Field(0, ge=0, le=HASH_MASK, description="which images the first epoch mirrors")

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the flip; it draws no random number."""
        _image_shape(input_shape)
        seed = self.seed

        def flip(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            # Hashed before the xor as well: otherwise another seed would only permute the bits
            # among the samples.
            bits = _hash(_hash(indices) ^ seed)
            return _flipped(samples, (bits + epoch) % 2 == 0)

        return flip


def _hash(numbers: torch.Tensor) -> torch.Tensor:
    """Hash the lower 32 bits, so that each bit of the result depends on all of them.

    Multiplicative hashing (Knuth, The Art of Computer Programming, 6.4) between xor-shifts. The
    factor has 27 bits, so that products fit into int64 and are the same on every device.
    """
    for _ in range(2):
        numbers = (numbers ^ (numbers >> 16)) * HASH_FACTOR & HASH_MASK
    return numbers ^ (numbers >> 16)


def _flipped(samples: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.where(mask[:, None, None, None], samples.flip(-1), samples)


class Cutout(AugmentationParams):
    """Blank a square in each image (DeVries and Taylor, arXiv:1708.04552).

    Its centre is anywhere in the image, so near the border a part of the square lies outside.
    """

    size: PositiveInt = Field(8, description="side of the square in pixels")
    fill: int = Field(128, ge=0, le=255, description="value of the blanked pixels")

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the cutout; the square must be smaller than the images."""
        import torch

        _, height, width = _image_shape(input_shape)
        size, fill = self.size, self.fill
        _check_side("size", size, min(height, width))

        def cut(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            count, device = len(samples), samples.device

            def inside(side: int) -> torch.Tensor:
                first = torch.randint(side, (count, 1), device=device) - size // 2
                offset = torch.arange(side, device=device) - first
                return (offset >= 0) & (offset < size)

            square = inside(height)[:, :, None] & inside(width)[:, None, :]
            return samples.masked_fill(square[:, None], fill)

        return cut


@hookimpl
def register_augmentations(register: Register) -> None:
    register("random_crop", RandomCrop)
    register("horizontal_flip", HorizontalFlip)
    register("alternating_flip", AlternatingFlip)
    register("cutout", Cutout)
