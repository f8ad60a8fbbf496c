"""Parts of images blanked: a square, or a rectangle of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from torchyard import Augmentation, AugmentationParams, Register, hookimpl
from torchyard.plugins.augmentations.images import (
    Positive,
    Shares,
    chance,
    change,
    check_side,
    first_that_fits,
    image_shape,
    inside,
    place,
    rectangle_sides,
)

if TYPE_CHECKING:
    import torch


class Cutout(AugmentationParams):
    """Blank a square in each image (DeVries and Taylor, arXiv:1708.04552).

    Its centre is anywhere in the image, so near the border a part of the square lies outside.
    """

    size: PositiveInt = Field(8, description="side of the square in pixels")
    fill: int = Field(128, ge=0, le=255, description="value of the blanked pixels")

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the cutout; the square must be smaller than the images."""
        import torch

        _, height, width = image_shape(input_shape)
        size, fill = self.size, self.fill
        check_side("size", size, min(height, width))

        def blanked(samples: torch.Tensor, *rectangle: torch.Tensor) -> torch.Tensor:
            return samples.masked_fill(inside(samples, *rectangle), fill)

        def cut(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            def first(side: int) -> torch.Tensor:
                return torch.randint(side, (len(samples),), device=samples.device) - size // 2

            top, left = first(height), first(width)
            rectangle = (top, left, top + size, left + size)
            return change(samples, None, blanked, *rectangle)

        return cut


class RandomErasing(AugmentationParams):
    """Blank a rectangle in each image with probability p (Zhong et al., arXiv:1708.04896).

    As torchvision.transforms.v2.RandomErasing, on pixels before they are normalized: after ten
    rectangles that do not fit the image stays as it is.
    """

    p: float = Field(0.5, ge=0, le=1, description="probability")
    scale: Shares = Field((0.02, 0.33), description="share of the area, least and greatest")
    ratio: Positive = Field((0.3, 3.3), description="height by width, least and greatest")
    value: Annotated[int, Field(ge=0, le=255)] | Literal["random"] = Field(
        0, description="of the blanked pixels; random: each of its own"
    )

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the change."""
        import torch

        _, height, width = image_shape(input_shape)

        def blanked(samples: torch.Tensor, *rectangle: torch.Tensor) -> torch.Tensor:
            part = inside(samples, *rectangle)
            if self.value != "random":
                return samples.masked_fill(part, self.value)
            noise = torch.randint(256, samples.shape, dtype=samples.dtype, device=samples.device)
            return torch.where(part, noise, samples)

        def erase(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            chosen = chance(samples, self.p)
            high, wide = sides = rectangle_sides(samples, self.scale, self.ratio)
            fits = (high < height) & (wide < width)
            high, wide = first_that_fits(sides, fits, (0, 0))
            top, left = place(samples, high, height), place(samples, wide, width)
            chosen = chosen & fits.any(0)
            return change(samples, chosen, blanked, top, left, top + high, left + wide)

        return erase


@hookimpl
def register_augmentations(register: Register) -> None:
    register("cutout", Cutout)
    register("random_erasing", RandomErasing)
