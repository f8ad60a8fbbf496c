"""QuickNet: a small convolutional network that two CPU cores train in seconds."""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import Field, PositiveFloat, PositiveInt

from torchyard import ModelParams, Register, hookimpl

if TYPE_CHECKING:
    import torch
    from torch import nn

# Side of a feature map up to which one matrix product computes the weights' gradient faster than
# oneDNN, with AMX (`benchmarks/reasons/plugins.md`).
SMALL_MAP = 4


class QuickNet(ModelParams):
    """A convolution of stride 2, then stages of two 3x3 convolutions, each at half the resolution.

    A smaller ResNet-9 (David Page, https://myrtle.ai/learn/how-to-train-your-resnet/) and
    airbench94 (Jordan, arXiv:2404.00498): each stage pools before its convolutions instead of
    after, so that of 32x32 pixels they compute 8x8 and less. On a CPU batch norm and pooling of
    large feature maps cost more than convolutions.
    """

    widths: tuple[PositiveInt, ...] = Field(
        (64, 128, 256), min_length=1, description="channels of the first convolution and the stages"
    )
    bn_momentum: float = Field(
        0.4, gt=0, le=1, description="the last batch's weight in the averages"
    )
    scale: PositiveFloat = Field(0.125, description="factor of the logits: low for a soft softmax")

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
    """Makes a 3x3 convolution that trains faster on small feature maps on the CPU."""
    import torch
    from torch import nn
    from torch.nn.grad import conv2d_input

    class _Im2colConvolution(torch.autograd.Function):
        """A convolution whose weights' gradient is the product of the im2col matrix and another."""

        @staticmethod
        def forward(maps: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return nn.functional.conv2d(maps, weight, padding=1)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            [gradient] = gradients
            maps, weight = ctx.saved_tensors
            count, channels, height, width = maps.shape
            # im2col: one row per output pixel, with the 3x3 input pixels that it depends on.
            padded = nn.functional.pad(maps.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
            image, row, column, _ = padded.stride()
            columns = padded.as_strided(
                (count, height, width, 3, 3, channels), (image, row, column, row, column, 1)
            ).reshape(-1, 9 * channels)
            rows = gradient.permute(0, 2, 3, 1).reshape(-1, len(weight))
            weight_gradient = (rows.T @ columns).view(len(weight), 3, 3, channels)
            input_gradient = conv2d_input(maps.shape, weight, gradient, padding=1)  # type: ignore[no-untyped-call]
            return input_gradient, weight_gradient.permute(0, 3, 1, 2)

    class Conv3x3(nn.Conv2d):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            small = max(maps.shape[2:]) <= SMALL_MAP
            supported = maps.device.type == "cpu" and maps.dtype == torch.bfloat16
            faster = small and supported and torch.cpu.get_capabilities().get("amx_bf16")
            if not (faster and self.training and maps.requires_grad):
                return super().forward(maps)
            convolved: torch.Tensor = _Im2colConvolution.apply(maps, self.weight.to(maps.dtype))
            return convolved

    return partial(Conv3x3, kernel_size=3, padding=1, bias=False)


@hookimpl
def register_models(register: Register) -> None:
    register("quicknet", QuickNet)
