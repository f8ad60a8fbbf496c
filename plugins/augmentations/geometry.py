"""Rotation, and affine maps: each image moved, turned, scaled and sheared about its centre."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from torchyard import Augmentation, AugmentationParams, Register, hookimpl
from torchyard.plugins.augmentations.images import (
    Positive,
    chance,
    change,
    image_shape,
    uniform,
)

if TYPE_CHECKING:
    import torch

Interpolation = Literal["nearest", "bilinear"]
Share = Annotated[float, Field(ge=0, le=1)]


def warp(
    samples: torch.Tensor, sources: torch.Tensor, interpolation: Interpolation, fill: int
) -> torch.Tensor:
    """Images whose pixels are read elsewhere; what is read outside of the image is `fill`.

    Args:
        sources: N x 2 x 3, from the place (x, y, 1) of a pixel to where it is read; both from the
            image's centre, in pixels.
    """
    import torch

    height, width = samples.shape[-2:]
    x = torch.linspace((1 - width) / 2, (width - 1) / 2, width, device=samples.device)
    y = torch.linspace((1 - height) / 2, (height - 1) / 2, height, device=samples.device)
    places = torch.stack([*torch.meshgrid(x, y, indexing="xy"), x.new_ones(height, width)], -1)
    across, down = sources.unbind(1)
    grid = places.view(1, -1, 3) @ torch.stack([across / (width / 2), down / (height / 2)], -1)
    found = torch.nn.functional.grid_sample(
        samples.float() - fill,
        grid.view(-1, height, width, 2),
        mode=interpolation,
        align_corners=False,
    )
    return (found + fill).round_().to(samples.dtype)


def affine_sources(
    angle: torch.Tensor,
    translate: tuple[torch.Tensor, torch.Tensor],
    scale: torch.Tensor,
    shear: torch.Tensor,
) -> torch.Tensor:
    """The `sources` of N affine maps, as in torchvision.transforms.v2.functional.affine.

    Args:
        angle: clockwise, in radians.
        translate: to the right, and downwards, in pixels.
        shear: along x, in radians.
    """
    import torch

    # The inverse of scale * rotation * [[1, -tan], [0, 1]].
    cos, sin, tan = angle.cos(), angle.sin(), shear.tan()
    a, b, c, d = (each / scale for each in (cos - sin * tan, sin + cos * tan, -sin, cos))
    right, down = translate
    rows = [a, b, -a * right - b * down, c, d, -c * right - d * down]
    return torch.stack(rows, 1).view(-1, 2, 3)


class Rotate(AugmentationParams):
    """Turn each image about its centre, as torchvision.transforms.v2.RandomRotation."""

    degrees: float = Field(15, ge=0, le=180, description="greatest angle, either way")
    interpolation: Interpolation = Field("nearest", description="between pixels")
    fill: int = Field(0, ge=0, le=255, description="value beyond the border")
    p: float = Field(1.0, ge=0, le=1, description="probability")

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the rotation; images keep their size."""
        image_shape(input_shape)

        def rotated(samples: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
            none = angle * 0
            sources = affine_sources(angle, (none, none), none + 1, none)
            return warp(samples, sources, self.interpolation, self.fill)

        def rotate(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            angle = uniform(samples, -self.degrees, self.degrees).deg2rad()
            return change(samples, chance(samples, self.p), rotated, angle)

        return rotate


class Affine(AugmentationParams):
    """Turn, move, scale and shear each image, as torchvision.transforms.v2.RandomAffine."""

    degrees: float = Field(10, ge=0, le=180, description="greatest angle, either way")
    translate: tuple[Share, Share] = Field(
        (0.1, 0.1), description="how far to move it at most, as shares of width and height"
    )
    scale: Positive = Field((0.9, 1.1), description="least and greatest factor")
    shear: float = Field(0, ge=0, lt=90, description="greatest angle along x, in degrees")
    interpolation: Interpolation = Field("nearest", description="between pixels")
    fill: int = Field(0, ge=0, le=255, description="value beyond the border")
    p: float = Field(1.0, ge=0, le=1, description="probability")

    def build(self, input_shape: tuple[int, ...]) -> Augmentation:
        """Make the affine map; images keep their size."""
        _, height, width = image_shape(input_shape)
        far_right, far_down = self.translate[0] * width, self.translate[1] * height

        def mapped(samples: torch.Tensor, *drawn: torch.Tensor) -> torch.Tensor:
            angle, right, down, scale, shear = drawn
            sources = affine_sources(angle, (right, down), scale, shear)
            return warp(samples, sources, self.interpolation, self.fill)

        def affine(samples: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
            return change(
                samples,
                chance(samples, self.p),
                mapped,
                uniform(samples, -self.degrees, self.degrees).deg2rad(),
                uniform(samples, -far_right, far_right).round(),
                uniform(samples, -far_down, far_down).round(),
                uniform(samples, *self.scale),
                uniform(samples, -self.shear, self.shear).deg2rad(),
            )

        return affine


@hookimpl
def register_augmentations(register: Register) -> None:
    register("rotate", Rotate)
    register("affine", Affine)
