"""Views: a network looks at an image several times, and what it says is averaged.

Test-time augmentation as a layer: what is evaluated with it is served with it.
"""

from __future__ import annotations

import torch
from torch import nn

SHIFT = 1  # pixels, each way


class Views(nn.Module):
    """An image, its mirror image and, with shifts, both shifted, each with its weight.

    As in https://github.com/KellerJordan/cifar10-airbench: with shifts, half of the weight is that
    of the image and its mirror image, half that of both shifted by a pixel up and left, and down
    and right, with their border reflected.

    Args:
        height, width: of the images, in pixels.
        shifts: whether shifted images are looked at, too.
    """

    def __init__(self, height: int, width: int, *, shifts: bool) -> None:
        super().__init__()
        self.shifts = (-SHIFT, SHIFT) if shifts else ()
        for shift in self.shifts:
            # They are no weights: a file of those is the same with views and without.
            self.register_buffer(f"rows{shift:+}", _shifted(height, shift), persistent=False)
            self.register_buffer(f"columns{shift:+}", _shifted(width, shift), persistent=False)

    def forward(self, samples: torch.Tensor) -> list[tuple[torch.Tensor, float]]:
        """Views of raw images N x C x H x W, with weights that sum to 1."""
        views, share = [(samples, 0.5 if self.shifts else 1.0)], 0.25
        for shift in self.shifts:
            rows, columns = (self.get_buffer(f"{name}{shift:+}") for name in ("rows", "columns"))
            views.append((samples.index_select(2, rows).index_select(3, columns), share))
        return [(seen, weight / 2) for view, weight in views for seen in (view, view.flip(3))]


def _shifted(length: int, shift: int) -> torch.Tensor:
    """The source of each row or column, reflected at the border: -1 is 1."""
    last = length - 1
    return last - (last - (torch.arange(length) + shift).abs()).abs()
