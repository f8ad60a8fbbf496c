"""Mirror images: of all samples at random, or of each in every second epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from torchyard import Augmentation, AugmentationParams, Register, hookimpl
from torchyard.plugins.augmentations.images import chance, image_shape

if TYPE_CHECKING:
    import torch

HASH_FACTOR, HASH_MASK = 82_951_111, 0xFFFFFFFF  # 2^27 over the golden ratio; 32 bits


class HorizontalFlip(AugmentationParams):
    """Mirror each image left to right with probability p."""

    p: float = Field(0.5, ge=0, le=1, description="probability")

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the flip."""
        image_shape(input_shape)

        def flip(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            return _flipped(samples, chance(samples, self.p), -1)

        return flip


class VerticalFlip(AugmentationParams):
    """Turn each image upside down, as a mirror does, with probability p."""

    p: float = Field(0.5, ge=0, le=1, description="probability")

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the flip."""
        image_shape(input_shape)

        def flip(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            return _flipped(samples, chance(samples, self.p), -2)

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
        image_shape(input_shape)
        seed = self.seed

        def flip(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            # Hashed before the xor as well: otherwise another seed would only permute the bits
            # among the samples.
            bits = _hash(_hash(indices) ^ seed)
            return _flipped(samples, (bits + epoch) % 2 == 0, -1)

        return flip


def _hash(numbers: torch.Tensor) -> torch.Tensor:
    """Hash the lower 32 bits, so that each bit of the result depends on all of them.

    Multiplicative hashing (Knuth, The Art of Computer Programming, 6.4) between xor-shifts. The
    factor has 27 bits, so that products fit into int64 and are the same on every device.
    """
    for _ in range(2):
        numbers = (numbers ^ (numbers >> 16)) * HASH_FACTOR & HASH_MASK
    return numbers ^ (numbers >> 16)


def _flipped(samples: torch.Tensor, mask: torch.Tensor, axis: int) -> torch.Tensor:
    import torch

    # Whole samples are picked: three times as fast on a CPU as `torch.where`, pixel by pixel.
    both = torch.cat([samples, samples.flip(axis)])
    return both.index_select(0, torch.arange(len(mask), device=mask.device) + len(mask) * mask)


@hookimpl
def register_augmentations(register: Register) -> None:
    register("horizontal_flip", HorizontalFlip)
    register("vertical_flip", VerticalFlip)
    register("alternating_flip", AlternatingFlip)
