"""Policies: operations drawn for each image from the same fourteen, RandAugment and TrivialAugment.

The operations and their magnitudes are those of torchvision.transforms.v2. Those that move pixels
are one affine map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from torchyard import Augmentation, AugmentationParams, Register, hookimpl
from torchyard.plugins.augmentations.colour import (
    brightened,
    colour_shape,
    contrasted,
    saturated,
)
from torchyard.plugins.augmentations.geometry import Interpolation, warp
from torchyard.plugins.augmentations.images import chance, change_, per_sample

if TYPE_CHECKING:
    import torch

SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE = range(5)
BRIGHTNESS, COLOR, CONTRAST, SHARPNESS = range(5, 9)
POSTERIZE, SOLARIZE, AUTOCONTRAST, EQUALIZE, IDENTITY = range(9, 14)
OPERATIONS = 14


@dataclass(frozen=True)
class Limits:
    """What the operations do at their greatest magnitude.

    Attributes:
        shear: pixels along one axis for each along the other.
        translate: pixels, along x and y.
        rotate: degrees.
        blend: how far the factor of the four blending operations is from 1.
        posterize: bits taken away.
    """

    shear: float
    translate: tuple[float, float]
    rotate: float
    blend: float
    posterize: int


def operate(
    samples: torch.Tensor,
    operation: torch.Tensor,
    level: torch.Tensor,
    sign: torch.Tensor,
    limits: Limits,
    interpolation: Interpolation = "nearest",
    fill: int = 0,
) -> torch.Tensor:
    """Change each image by one operation; the samples may be overwritten.

    Args:
        samples: uint8 N x C x H x W, C 1 or 3.
        operation: N numbers below OPERATIONS.
        level: N numbers from 0 to 1, shares of the greatest magnitude.
        sign: N numbers, 1 or -1, of the operations that have one.
    """

    def warped(some: torch.Tensor, operation: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return warp(some, _sources(some, operation, level, limits), interpolation, fill)

    signed = level * sign
    samples = change_(samples, operation <= ROTATE, warped, operation, signed)
    for wanted, how in BLENDS.items():
        samples = change_(samples, operation == wanted, how, 1 + limits.blend * signed)
    bits = (8 - level * limits.posterize).round()
    samples = change_(samples, operation == POSTERIZE, posterized, bits)
    samples = change_(samples, operation == SOLARIZE, solarized, 255 * (1 - level))
    samples = change_(samples, operation == AUTOCONTRAST, autocontrasted)
    return change_(samples, operation == EQUALIZE, equalized)


def _sources(
    samples: torch.Tensor, operation: torch.Tensor, level: torch.Tensor, limits: Limits
) -> torch.Tensor:
    """Where `warp` reads each pixel: shears leave the corner at the top left where it is."""
    import torch

    def amount(wanted: int, greatest: float) -> torch.Tensor:
        return torch.where(operation == wanted, level * greatest, 0.0)

    height, width = samples.shape[-2:]
    shear_x, shear_y = amount(SHEAR_X, limits.shear), amount(SHEAR_Y, limits.shear)
    right = amount(TRANSLATE_X, limits.translate[0]).trunc()
    down = amount(TRANSLATE_Y, limits.translate[1]).trunc()
    angle = amount(ROTATE, limits.rotate).deg2rad()
    cos, sin = angle.cos(), angle.sin()
    across = [cos, shear_x - sin, shear_x * height / 2 - right]
    along = [shear_y + sin, cos, shear_y * width / 2 - down]
    return torch.stack([*across, *along], 1).view(-1, 2, 3)


def sharpened(samples: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Images blended with means of 3 x 3 pixels, in which the middle one counts five times."""
    import torch

    channels, height, width = samples.shape[1:]
    if min(height, width) < 3:
        return samples
    pixels = samples.float()
    kernel = torch.full((channels, 1, 3, 3), 1 / 13, device=samples.device)
    kernel[:, :, 1, 1] = 5 / 13
    smooth = torch.nn.functional.conv2d(pixels, kernel, groups=channels).round_()
    inner = pixels[..., 1:-1, 1:-1]
    inner.add_((smooth - inner) * per_sample(1 - factor, samples))
    return pixels.clamp_(0, 255).to(samples.dtype)


def posterized(samples: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Images with so many bits a value each."""
    import torch

    dropped = 2 ** (8 - bits)
    return samples & per_sample((256 - dropped).to(torch.uint8), samples)


def solarized(samples: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Images with the values from a threshold on inverted."""
    import torch

    return torch.where(samples >= per_sample(threshold, samples), 255 - samples, samples)


def autocontrasted(samples: torch.Tensor) -> torch.Tensor:
    """Images with the least value of each channel at 0, and the greatest at 255."""
    pixels = samples.float()
    least, greatest = pixels.amin((2, 3), keepdim=True), pixels.amax((2, 3), keepdim=True)
    alike = greatest == least
    scale = ((greatest - least) * (1 / 255)).masked_fill_(alike, 1)
    return pixels.sub_(least.masked_fill(alike, 0)).div_(scale).clamp_(0, 255).to(samples.dtype)


def equalized(samples: torch.Tensor) -> torch.Tensor:
    """Images with every value of each channel about as frequent, as Pillow's ImageOps.equalize."""
    import torch

    values = samples.flatten(2).long()
    counts = values.new_zeros(*values.shape[:2], 256)
    counts.scatter_add_(2, values, values.new_ones(()).expand_as(values))
    sums = counts.cumsum(2)
    # All pixels but those of the greatest value, which are where the sum is reached first.
    others = values.shape[2] - counts.gather(2, sums.argmax(2, keepdim=True))
    step = others // 255
    table = (sums - counts + step // 2) // step.clamp(min=1)
    return torch.where(
        step[..., None] == 0,
        samples,
        table.clamp_(0, 255).gather(2, values).to(samples.dtype).view_as(samples),
    )


BLENDS = {
    BRIGHTNESS: brightened,
    COLOR: saturated,
    CONTRAST: contrasted,
    SHARPNESS: sharpened,
}


class RandAugment(AugmentationParams):
    """Some operations of the same magnitude on each image (Cubuk et al., arXiv:1909.13719)."""

    num_ops: PositiveInt = Field(2, description="operations on each image, one after another")
    magnitude: NonNegativeInt = Field(9, description="of all operations")
    num_magnitude_bins: int = Field(31, ge=2, description="magnitudes there are")
    interpolation: Interpolation = Field("nearest", description="between pixels")
    fill: int = Field(0, ge=0, le=255, description="value beyond the border")

    @model_validator(mode="after")
    def _check_magnitude(self) -> RandAugment:
        if self.magnitude >= self.num_magnitude_bins:
            raise ValueError(
                f"magnitude={self.magnitude} must be less than num_magnitude_bins, "
                f"{self.num_magnitude_bins}"
            )
        return self

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the operations on grey or RGB images."""
        import torch

        _, height, width = colour_shape(input_shape)
        farthest = (150 / 331 * width, 150 / 331 * height)
        limits = Limits(shear=0.3, translate=farthest, rotate=30, blend=0.9, posterize=4)
        level = self.magnitude / (self.num_magnitude_bins - 1)

        def augment(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            samples = samples.clone()
            for _ in range(self.num_ops):
                operation, sign = _drawn(samples)
                levels = torch.full_like(sign, level)
                samples = operate(
                    samples, operation, levels, sign, limits, self.interpolation, self.fill
                )
            return samples

        return augment


class TrivialAugment(AugmentationParams):
    """One operation of any magnitude on each image (Müller and Hutter, arXiv:2103.10158).

    Over their wide ranges of magnitudes, as torchvision.transforms.v2.TrivialAugmentWide.
    """

    num_magnitude_bins: int = Field(31, ge=2, description="magnitudes there are")
    interpolation: Interpolation = Field("nearest", description="between pixels")
    fill: int = Field(0, ge=0, le=255, description="value beyond the border")

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the operation on grey or RGB images."""
        import torch

        colour_shape(input_shape)
        limits = Limits(shear=0.99, translate=(32, 32), rotate=135, blend=0.99, posterize=6)
        bins = self.num_magnitude_bins

        def augment(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            operation, sign = _drawn(samples)
            level = torch.randint(bins, (len(samples),), device=samples.device) / (bins - 1)
            return operate(
                samples.clone(), operation, level, sign, limits, self.interpolation, self.fill
            )

        return augment


def _drawn(samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An operation and a sign for each image."""
    import torch

    operation = torch.randint(OPERATIONS, (len(samples),), device=samples.device)
    return operation, 1 - 2 * chance(samples, 0.5).float()


@hookimpl
def register_augmentations(register: Register) -> None:
    register("rand_augment", RandAugment)
    register("trivial_augment", TrivialAugment)
