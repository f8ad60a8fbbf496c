"""QuickNet: a small convolutional network that two CPU cores train in seconds."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveFloat, PositiveInt

from torchyard import ModelParams, Register, hookimpl

if TYPE_CHECKING:
    import torch
    from torch import nn

# Up to this side of a map the weights' gradient is one matrix product. Of 256 filters on maps of
# 4x4 it takes 20 µs an image on two cores with AMX, oneDNN's own 53; of 128 on 8x8 33 against 24.
SMALL_MAP = 4


class QuickNet(ModelParams):
    """A convolution of stride 2, then stages of two 3x3 convolutions, each on half the side.

    David Page's ResNet-9 (https://myrtle.ai/learn/how-to-train-your-resnet/) and airbench94
    (Jordan, arXiv:2404.00498) made small: the image is halved before the convolutions and not
    after them, so of 32x32 pixels the costly ones see 8x8 and less. On a CPU the batch norm and
    the pooling of large maps cost more than convolutions.
    """

    widths: tuple[PositiveInt, ...] = Field(
        (64, 128, 256), min_length=1, description="channels of the first convolution and the stages"
    )
    bn_momentum: float = Field(0.4, gt=0, le=1, description="the last batch's share in statistics")
    scale: PositiveFloat = Field(0.125, description="of the logits: a soft softmax to begin with")

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make the network; images must have a pixel left after as many halvings as widths."""
        from torch import nn

        if len(input_shape) != 3:
            raise ValueError("takes images, not vectors; 'linear' and 'mlp' take both")
        channels, height, width = input_shape
        smallest = 2 ** len(self.widths)
        if min(height, width) < smallest:
            raise ValueError(f"needs images of at least {smallest}x{smallest} for its halvings")
        scale = self.scale

        class _Head(nn.Linear):
            def forward(self, features: torch.Tensor) -> torch.Tensor:
                return super().forward(features) * scale

        def stage(convolution: nn.Conv2d) -> list[nn.Module]:
            norm = nn.BatchNorm2d(convolution.out_channels, momentum=self.bn_momentum)
            return [convolution, norm, nn.ReLU(inplace=True)]

        layers = stage(nn.Conv2d(channels, self.widths[0], 4, stride=2, padding=1, bias=False))
        convolution = _convolution()
        for before, after in pairwise(self.widths):
            layers += [nn.AvgPool2d(2), *stage(convolution(before, after))]
            layers += stage(convolution(after, after))
        head = _Head(self.widths[-1], num_classes, bias=False)
        return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), head)


@cache
def _convolution() -> Any:
    """The class of a 3x3 convolution whose training is quick on small maps on the CPU."""
    import torch
    from torch import nn
    from torch.nn.grad import conv2d_input

    class _Product(torch.autograd.Function):
        """The convolution; backward, its weights' gradient is a product of two matrices."""

        @staticmethod
        def forward(maps: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(maps, weight, padding=1)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            [slope] = slopes
            maps, weight = ctx.saved_tensors
            count, channels, height, width = maps.shape
            # A row for each place of the output: the nine places of the input it saw.
            padded = nn.functional.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
            image, row, column, _ = padded.stride()
            seen = padded.as_strided(
                (count, height, width, 3, 3, channels), (image, row, column, row, column, 1)
            ).reshape(-1, 9 * channels)
            of_places = slope.permute(0, 2, 3, 1).reshape(-1, len(weight))
            of_weight = (of_places.T @ seen).view(len(weight), 3, 3, channels)
            of_maps = conv2d_input(maps.shape, weight, slope, padding=1)  # type: ignore[no-untyped-call]
            return of_maps, of_weight.permute(0, 3, 1, 2)

    class Conv3x3(nn.Conv2d):
        def __init__(self, before: int, after: int) -> None:
            super().__init__(before, after, 3, padding=1, bias=False)

        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            small = max(maps.shape[2:]) <= SMALL_MAP
            if not (
                small
                and self.training
                and maps.device.type == "cpu"
                and maps.dtype == torch.bfloat16
                and maps.requires_grad
            ):
                return super().forward(maps)
            convolved: torch.Tensor = _Product.apply(maps, self.weight.to(maps.dtype))
            return convolved

    return Conv3x3


@hookimpl
def register_models(register: Register) -> None:
    register("quicknet", QuickNet)
