"""Crops: a shifted window of the image, and a part of it at the old size."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from torchyard import Augmentation, AugmentationParams, RegionParams, Register, hookimpl
from torchyard.plugins.augmentations.images import (
    ATTEMPTS,
    Positive,
    Shares,
    change,
    check_side,
    first_that_fits,
    image_shape,
    place,
    rectangle_sides,
)

if TYPE_CHECKING:
    import numpy as np
    import torch


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

        channels, height, width = image_shape(input_shape)
        padding, mode = self.padding, self.mode
        check_side("padding", padding, min(height, width))

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


class RandomResizedCrop(RegionParams):
    """A rectangle of each image, scaled to the whole size (Szegedy et al., arXiv:1409.4842).

    Its share of the area is drawn from `scale`, its aspect ratio from `ratio`, uniformly in the
    logarithm. After ten rectangles that do not fit it is the middle of the image, as in
    torchvision.transforms.v2.RandomResizedCrop.
    """

    scale: Shares = Field((0.08, 1.0), description="share of the area, least and greatest")
    ratio: Positive = Field((3 / 4, 4 / 3), description="width by height, least and greatest")

    def region(
        self, height: int, width: int, generator: np.random.Generator
    ) -> tuple[int, int, int, int]:
        """The rectangle of an image of this size: top, left, height and width."""
        for _ in range(ATTEMPTS):
            area = height * width * generator.uniform(*self.scale)
            aspect = math.exp(generator.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < wide <= width and 0 < high <= height:
                top = int(generator.integers(height - high + 1))
                return top, int(generator.integers(width - wide + 1)), high, wide
        wide, high = self._middle(height, width)
        return (height - high) // 2, (width - wide) // 2, high, wide

    def _middle(self, height: int, width: int) -> tuple[int, int]:
        """Width and height of the largest rectangle whose aspect ratio is allowed."""
        wide = min(width, max(1, round(height * self.ratio[1])))
        return wide, min(height, max(1, round(width / self.ratio[0])))

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the crop, which draws as `region` does, and scales with bilinear interpolation."""
        import torch

        _, height, width = image_shape(input_shape)
        middle = self._middle(height, width)

        def resized(samples: torch.Tensor, *rectangle: torch.Tensor) -> torch.Tensor:
            top, left, high, wide = rectangle
            ys, xs = _sources(top, high, height), _sources(left, wide, width)
            shape = (len(samples), height, width)
            grid = torch.stack([xs[:, None, :].expand(shape), ys[:, :, None].expand(shape)], -1)
            found = torch.nn.functional.grid_sample(
                samples.float(), grid, padding_mode="border", align_corners=False
            )
            return found.round_().to(samples.dtype)

        def crop(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            wide, high = sides = rectangle_sides(samples, self.scale, self.ratio)
            fits = (wide > 0) & (wide <= width) & (high > 0) & (high <= height)
            wide, high = first_that_fits(sides, fits, middle)
            found = fits.any(0)
            top = place(samples, high, height).where(found, (height - high).div(2).floor())
            left = place(samples, wide, width).where(found, (width - wide).div(2).floor())
            return change(samples, None, resized, top, left, high, wide)

        return crop


def _sources(first: torch.Tensor, side: torch.Tensor, size: int) -> torch.Tensor:
    """Where each of `size` pixels is read, for grid_sample: N x size from -1 to 1.

    Not beyond the first and last pixel of the part, so that nothing around it is seen.
    """
    import torch

    first, side = first[:, None], side[:, None]
    pixel = (torch.arange(size, device=side.device) + 0.5) * side / size - 0.5
    pixel = first + pixel.clamp(min=0).minimum(side - 1)
    return (2 * pixel + 1) / size - 1


@hookimpl
def register_augmentations(register: Register) -> None:
    register("random_crop", RandomCrop)
    register("random_resized_crop", RandomResizedCrop)
