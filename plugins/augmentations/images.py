"""What the augmentations of images share: checks, draws, and who of a batch is changed.

Each draws for a whole batch at once, a number per sample; there is no loop over samples and, on a
GPU, nothing waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

if TYPE_CHECKING:
    import torch

# Pixels that are changed at once on a CPU. What is computed in float32 on the way then stays in the
# processor's cache: 2 to 4 times as fast as all of 64 photos at once.
CHUNK = 2**20
ATTEMPTS = 10  # at a rectangle that fits, as in torchvision


def _in_order(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"{bounds[0]:g} is more than {bounds[1]:g}: write the lesser one first")
    return bounds


def _above_zero(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] <= 0:
        raise ValueError("must be more than 0")
    return bounds


def _at_most_one(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[1] > 1:
        raise ValueError("must be at most 1")
    return bounds


Bounds = Annotated[tuple[float, float], AfterValidator(_in_order)]
Positive = Annotated[Bounds, AfterValidator(_above_zero)]
Shares = Annotated[Bounds, AfterValidator(_at_most_one), AfterValidator(_above_zero)]


def image_shape(input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of images.

    Raises:
        ValueError: the samples are something else.
    """
    if len(input_shape) != 3:
        raise ValueError("changes images, not vectors")
    channels, height, width = input_shape
    return channels, height, width


def check_side(name: str, value: int, shorter: int) -> None:
    """Refuse a length in pixels that is not less than the images' shorter side."""
    if value >= shorter:
        raise ValueError(f"{name}={value} must be less than the shorter side, {shorter} pixels")


def chance(samples: torch.Tensor, p: float) -> torch.Tensor:
    """Which samples are chosen, each with probability p."""
    import torch

    return torch.rand(len(samples), device=samples.device) < p


def uniform(samples: torch.Tensor, low: float, high: float, rows: int = 1) -> torch.Tensor:
    """Uniform numbers, N or, of several rows, rows x N."""
    import torch

    shape = (len(samples),) if rows == 1 else (rows, len(samples))
    return torch.rand(shape, device=samples.device) * (high - low) + low


def per_sample(values: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """N numbers in as many dimensions as the samples have."""
    return values.view(-1, *(1 for _ in samples.shape[1:]))


def change(
    samples: torch.Tensor,
    chosen: torch.Tensor | None,
    how: Callable[..., torch.Tensor],
    *drawn: torch.Tensor,
) -> torch.Tensor:
    """New samples, of which the chosen ones (all of them with None) are changed.

    Args:
        how: called with some of the samples and their rows of each of `drawn`.
    """
    return change_(samples.clone(), chosen, how, *drawn)


def change_(
    samples: torch.Tensor,
    chosen: torch.Tensor | None,
    how: Callable[..., torch.Tensor],
    *drawn: torch.Tensor,
) -> torch.Tensor:
    """As `change`, with samples that may be overwritten: one of several changes in a row."""
    import torch

    if samples.device.type != "cpu":
        # All are changed: to ask which are chosen would wait for the device.
        changed = how(samples, *drawn)
        return (
            changed
            if chosen is None
            else torch.where(per_sample(chosen, samples), changed, samples)
        )
    rows = torch.arange(len(samples)) if chosen is None else chosen.nonzero().squeeze(1)
    size = max(1, CHUNK // math.prod(samples.shape[1:]))
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        samples[part] = how(samples[part], *(each[part] for each in drawn))
    return samples


def rectangle_sides(
    samples: torch.Tensor, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Width and height of rectangles, ATTEMPTS x N: of a share of the images and an aspect ratio.

    Both are drawn uniformly, the ratio in its logarithm, as in torchvision's RandomResizedCrop.
    """
    height, width = samples.shape[-2:]
    area = uniform(samples, *scale, rows=ATTEMPTS) * height * width
    aspect = uniform(samples, math.log(ratio[0]), math.log(ratio[1]), rows=ATTEMPTS).exp()
    return (area * aspect).sqrt().round(), (area / aspect).sqrt().round()


def first_that_fits(
    sides: tuple[torch.Tensor, torch.Tensor], fits: torch.Tensor, otherwise: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each sample the first of its sides that fits, or `otherwise` if none does."""
    import torch

    first, any_fits = fits.int().argmax(0, keepdim=True), fits.any(0)
    one, other = (
        torch.where(any_fits, side.gather(0, first)[0], instead)
        for side, instead in zip(sides, otherwise, strict=True)
    )
    return one, other


def place(samples: torch.Tensor, side: torch.Tensor, within: int) -> torch.Tensor:
    """Where each length of `side` pixels begins, anywhere in `within` pixels."""
    room = within - side + 1
    return (uniform(samples, 0, 1) * room).floor().minimum(room - 1)


def inside(
    samples: torch.Tensor,
    top: torch.Tensor,
    left: torch.Tensor,
    bottom: torch.Tensor,
    right: torch.Tensor,
) -> torch.Tensor:
    """The pixels of a rectangle in each image, N x 1 x H x W; bottom and right are outside."""
    import torch

    rows, columns = (torch.arange(side, device=samples.device) for side in samples.shape[-2:])
    high = (rows >= top[:, None]) & (rows < bottom[:, None])
    wide = (columns >= left[:, None]) & (columns < right[:, None])
    return (high[:, :, None] & wide[:, None, :]).unsqueeze(1)
