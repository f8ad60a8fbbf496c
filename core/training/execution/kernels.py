"""Convolution kernels, trimmed to the elements that are ever laid on the image.

A 3x3 kernel with padding 1 covers one pixel and eight zeros on a map of 1x1, which is what
torchvision's ResNets come to with images of 32x32, in three quarters of their weights. oneDNN
multiplies by the zeros all the same; without them a resnet18 trains a fifth faster.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn


def trim_kernels(network: nn.Module) -> None:
    """Have the convolutions of a network leave out what covers padding alone, whatever the image.

    Outputs stay the same, and so do gradients: zero where an element was left out.
    """
    for layer in network.modules():
        if (
            type(layer) is nn.Conv2d
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
            and any(layer.padding)
        ):
            layer._conv_forward = _TrimmedForward(layer)  # type: ignore[assignment]


class _TrimmedForward:
    """Replaces `Conv2d._conv_forward` of one layer."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self._kernel, self._padding = layer.kernel_size, layer.padding
        self._stride, self._dilation, self._groups = layer.stride, layer.dilation, layer.groups

    def __call__(
        self, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        sizes = (maps.shape[-2:], self._kernel, self._padding, self._stride, self._dilation)
        (rows, above), (columns, left) = (covering(*size) for size in zip(*sizes, strict=True))
        if rows != slice(None) or columns != slice(None):
            weight = _KernelSlice.apply(weight, rows, columns)
        whole_maps = maps.ndim == 4 and maps.shape[2:] == weight.shape[2:]
        if whole_maps and not (above or left) and self._groups == 1:
            # The kernel has one position. As a convolution, oneDNN would reorder the weights first.
            flat = nn.functional.linear(maps.flatten(1), weight.flatten(1), bias)
            return flat[:, :, None, None]
        return nn.functional.conv2d(
            maps, weight, bias, self._stride, (above, left), self._dilation, self._groups
        )


class _KernelSlice(torch.autograd.Function):
    """Some rows and columns of a kernel. Slices of torch fill two gradients with zeros, not one."""

    @staticmethod
    def forward(weight: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
        return weight[:, :, rows, columns].contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        weight, *ctx.slices = inputs
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,), (weight,), (rows, columns) = gradients, ctx.saved_tensors, ctx.slices
        whole = torch.zeros_like(weight, dtype=gradient.dtype)
        whole[:, :, rows, columns] = gradient
        return whole, None, None


@cache
def covering(size: int, kernel: int, padding: int, stride: int, dilation: int) -> tuple[slice, int]:
    """In one dimension: the elements of a kernel that cover the image, and the padding then left.

    Args:
        size: of the image, in pixels.
        kernel: its number of elements.
        padding: zeros at either end.
        stride, dilation: as torch's.

    Returns:
        All elements, where what is left could not be padded alike at both ends.
    """

    def outputs(kernel: int, padding: int) -> int:
        return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1

    count = outputs(kernel, padding)
    elements = [
        element
        for element in range(kernel)
        if any(0 <= stride * out + dilation * element - padding < size for out in range(count))
    ]
    if elements:
        left = padding - dilation * elements[0]
        if left >= 0 and outputs(elements[-1] - elements[0] + 1, left) == count:
            kept = slice(elements[0], elements[-1] + 1)
            return (slice(None) if kept == slice(0, kernel) else kept), left
    return slice(None), padding
