"""WideNet: a network for GPUs, of the shape that airbench trains."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat, PositiveInt

from torchyard import ModelParams, Register, hookimpl

if TYPE_CHECKING:
    from torch import nn


class WideNet(ModelParams):
    """A 2x2 convolution, then stages of two 3x3 convolutions with pooling between them.

    As in Jordan's airbench94 (arXiv:2404.00498): the first convolution keeps the image's side,
    the others begin as the identity, and batch norm learns biases alone. Its first convolution
    is not made from the images' covariance here, and is trained with the rest.
    """

    first: PositiveInt = Field(24, description="channels of the first convolution")
    widths: tuple[PositiveInt, ...] = Field((64, 256, 256), description="channels of the stages")
    bn_momentum: float = Field(0.4, gt=0, le=1, description="the last batch's share in statistics")
    scale: PositiveFloat = Field(0.125, description="of the logits")

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make the network; images must be 2 pixels or more after as many halvings as stages."""
        import torch
        from torch import nn

        channels, height, width = input_shape
        scale = self.scale

        class Scaled(nn.Module):
            def forward(self, logits: torch.Tensor) -> torch.Tensor:
                return logits * scale

        def convolution(before: int, after: int) -> nn.Conv2d:
            made = nn.Conv2d(before, after, 3, padding=1, bias=False)
            nn.init.dirac_(made.weight.data[:before])
            return made

        def norm(count: int) -> nn.BatchNorm2d:
            made = nn.BatchNorm2d(count, momentum=self.bn_momentum)
            made.weight.requires_grad_(False)
            return made

        layers: list[nn.Module] = [nn.Conv2d(channels, self.first, 2), nn.GELU()]
        for before, after in pairwise((self.first, *self.widths)):
            layers += [convolution(before, after), nn.MaxPool2d(2), norm(after), nn.GELU()]
            layers += [convolution(after, after), norm(after), nn.GELU()]
        side = (min(height, width) - 1) >> len(self.widths)
        head = nn.Linear(self.widths[-1], num_classes, bias=False)
        return nn.Sequential(*layers, nn.MaxPool2d(side), nn.Flatten(), head, Scaled())


@hookimpl
def register_models(register: Register) -> None:
    """Offer it by name."""
    register("widenet", WideNet)
