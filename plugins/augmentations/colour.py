"""Colour and sharpness: jitter, grey images, blur.

Brightness, contrast and saturation blend an image with another one: black, its mean grey, its
greys. Each gives what torchvision.transforms.v2.functional gives for the same factor.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from pydantic import Field, NonNegativeFloat, field_validator

from torchyard import Augmentation, AugmentationParams, Register, hookimpl
from torchyard.plugins.augmentations.images import (
    Positive,
    chance,
    change,
    change_,
    image_shape,
    per_sample,
    uniform,
)

if TYPE_CHECKING:
    import torch

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
RED, GREEN, BLUE = 0.2989, 0.587, 0.114  # of grey, as in torchvision and Pillow (ITU-R BT.601)


def colour_shape(input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of grey or RGB images.

    Raises:
        ValueError: the samples are something else.
    """
    channels, height, width = image_shape(input_shape)
    if channels not in (1, 3):
        raise ValueError(f"changes grey and RGB images, not those of {channels} channels")
    return channels, height, width


def greys(samples: torch.Tensor) -> torch.Tensor:
    """The images without colour, N x 1 x H x W of whole numbers in float32."""
    if samples.shape[1] == 1:
        return samples.float()
    red, green, blue = samples.unbind(1)
    grey = red.mul(RED).add_(green, alpha=GREEN).add_(blue, alpha=BLUE)
    return grey.floor_().unsqueeze(1)


def mean_grey(samples: torch.Tensor) -> torch.Tensor:
    """The mean of each image without colour, N x 1 x 1 x 1."""
    return greys(samples).mean((1, 2, 3), keepdim=True)


def blend(samples: torch.Tensor, other: torch.Tensor | float, factor: torch.Tensor) -> torch.Tensor:
    """`other` where the factor is 0, the images where it is 1, and beyond them where it is more."""
    factor = per_sample(factor, samples)
    return samples.mul(factor).add_(other * (1 - factor)).clamp_(0, 255).to(samples.dtype)


def brightened(samples: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Images with all values times a factor each."""
    return blend(samples, 0.0, factor)


def contrasted(samples: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Images with all distances from their mean grey times a factor each."""
    return blend(samples, mean_grey(samples), factor)


def saturated(samples: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Images with all distances from their greys times a factor each."""
    return samples if samples.shape[1] == 1 else blend(samples, greys(samples), factor)


def hue_turned(samples: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Images with every hue turned by a share of the circle each, -0.5 to 0.5.

    Smith, "Color gamut transform pairs", SIGGRAPH 1978: value and saturation stay.
    """
    import torch

    if samples.shape[1] == 1:
        return samples
    pixels = samples.float()
    red, green, blue = pixels.unbind(1)
    least, value = pixels.aminmax(dim=1)
    spread = value - least
    divisor = spread.clamp(min=1)  # values are whole; where all are alike there is no hue
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    hue = hue + 6 * turn[:, None, None]
    # How far each of red, green and blue is from the greatest value, along the hexagon of hues.
    offsets = torch.arange(5, 0, -2, device=samples.device).view(3, 1, 1)
    along = (hue.unsqueeze(1) + offsets).remainder_(6)
    away = along.minimum(4 - along).clamp_(0, 1)
    return (value.unsqueeze(1) - spread.unsqueeze(1) * away).round_().to(samples.dtype)


class ColorJitter(AugmentationParams):
    """Change brightness, contrast, saturation and hue of each image, in an order of its own.

    As torchvision.transforms.v2.ColorJitter, whose default of 0 would change nothing. Grey images
    have neither saturation nor hue.
    """

    brightness: NonNegativeFloat = Field(0.4, description="the factor is at most so far from 1")
    contrast: NonNegativeFloat = Field(0.4, description="the factor is at most so far from 1")
    saturation: NonNegativeFloat = Field(0.4, description="the factor is at most so far from 1")
    hue: float = Field(0.1, ge=0, le=0.5, description="greatest turn, as a share of the circle")
    p: float = Field(1.0, ge=0, le=1, description="probability")

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the jitter of grey or RGB images."""

        colour_shape(input_shape)
        steps = (
            (brightened, max(0, 1 - self.brightness), 1 + self.brightness),
            (contrasted, max(0, 1 - self.contrast), 1 + self.contrast),
            (saturated, max(0, 1 - self.saturation), 1 + self.saturation),
            (hue_turned, -self.hue, self.hue),
        )

        def jitter(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            chosen = chance(samples, self.p)
            amounts = [uniform(samples, low, high) for _, low, high in steps]
            order = uniform(samples, 0, 1, rows=len(steps)).argsort(0)
            samples = samples.clone()
            for turn in order:
                for number, (step, low, high) in enumerate(steps):
                    if low < high:
                        now = chosen & (turn == number)
                        samples = change_(samples, now, step, amounts[number])
            return samples

        return jitter


class Grayscale(AugmentationParams):
    """Take the colour out of each image with probability p, as torchvision's RandomGrayscale."""

    p: float = Field(0.1, ge=0, le=1, description="probability")

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the change; the images keep their three channels."""
        colour_shape(input_shape)

        def grey(samples: torch.Tensor) -> torch.Tensor:
            return greys(samples).to(samples.dtype).expand_as(samples)

        def decolour(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            return change(samples, chance(samples, self.p), grey)

        return decolour


class Blur(AugmentationParams):
    """Blur each image by a Gaussian of its own width (torchvision.transforms.v2.GaussianBlur)."""

    kernel_size: int = Field(5, ge=3, description="pixels, an odd number")
    sigma: Positive = Field(
        (0.1, 2.0), description="standard deviation in pixels, least and greatest"
    )
    p: float = Field(1.0, ge=0, le=1, description="probability")

    @field_validator("kernel_size")
    @classmethod
    def _check_kernel_size(cls, kernel_size: int) -> int:
        if kernel_size % 2 == 0:
            raise ValueError("must be odd")
        return kernel_size

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the blur; images are mirrored at their border."""
        import torch

        _, height, width = image_shape(input_shape)
        offsets = torch.arange(self.kernel_size) - self.kernel_size // 2

        @functools.cache
        def taps(device: torch.device) -> tuple[torch.Tensor, ...]:
            """The offsets' distances, and where they are read along each axis: kernel x H x H."""
            read = (
                torch.nn.functional.one_hot(_mirrored(torch.arange(side) + offsets[:, None], side))
                for side in (height, width)
            )
            return tuple(each.float().to(device) for each in (offsets, *read))

        def blurred(samples: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            distance, *read = taps(samples.device)
            weights = (-0.5 * (distance / sigma[:, None]).square()).softmax(1)
            # A product of matrices along each axis: with weights that differ from image to image
            # that is no slower than a convolution, which would have a group for each.
            down, right = (
                (weights @ each.flatten(1)).view(-1, 1, *each.shape[1:]) for each in read
            )
            return (down @ samples.float() @ right.mT).round_().to(samples.dtype)

        def blur(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            return change(samples, chance(samples, self.p), blurred, uniform(samples, *self.sigma))

        return blur


def _mirrored(index: torch.Tensor, side: int) -> torch.Tensor:
    """Indices beyond 0 and side - 1 mirrored at these, as often as need be."""
    period = max(1, 2 * (side - 1))
    index = index.remainder(period)
    return index.minimum(period - index)


@hookimpl
def register_augmentations(register: Register) -> None:
    register("color_jitter", ColorJitter)
    register("grayscale", Grayscale)
    register("blur", Blur)
