"""Convolutions as matrix products (im2col), for the compiled step of a small batch.

Every position of the kernel becomes a column, so that a convolution is one product of matrices,
and so are both its gradients (Chellapilla, Puri, Simard, 2006: High Performance Convolutional
Neural Networks for Document Processing). torch's own do that image by image, and once more in the
backward pass; here the columns of the whole batch serve both passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.functional import pad

CACHE_TAG = "torchyard.im2col 1"
MAX_KERNEL_ELEMENTS = 49  # each is a loop of its own in the compiled code


class Im2colConvolutions:
    """Both passes of `aten.convolution` for images, which share the columns.

    `NotImplemented` leaves those with a stride, dilation, groups or a large kernel to torch.
    """

    def __init__(self) -> None:
        # By the identity of the images, which are kept too, so that it stays theirs, and by what
        # else the columns follow from: a residual block has two convolutions of one input.
        self._made: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(
        self, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *settings: Any
    ) -> Any:
        """Images N x C x H x W and weight K x C x h x w to N x K x H' x W'.

        Args:
            settings: stride, padding, dilation, transposed, output padding and groups.
        """
        padding = _plain_padding(weight, *settings)
        if padding is None:
            return NotImplemented
        columns = self._columns(images, weight, padding)
        height, width = _output_size(images, weight, padding)
        product = weight.reshape(len(weight), -1) @ columns
        output = product.view(len(weight), len(images), height, width).transpose(0, 1)
        return output if bias is None else output + bias.view(1, -1, 1, 1)

    def backward(
        self,
        gradient: torch.Tensor,
        images: torch.Tensor,
        weight: torch.Tensor,
        bias_sizes: Sequence[int] | None,
        *settings: Any,
    ) -> Any:
        """The output's gradient to those of images, weight and bias, None of what is not wanted.

        Args:
            settings: as those of `forward`, and which of the three are wanted.
        """
        *settings_of_forward, wanted = settings
        padding = _plain_padding(weight, *settings_of_forward)
        if padding is None:
            return NotImplemented
        height, width = gradient.shape[2:]
        rows = gradient.transpose(0, 1).reshape(len(weight), -1)
        of_images = of_weight = of_bias = None
        if wanted[0]:
            columns = (weight.reshape(len(weight), -1).t() @ rows).view(
                *weight.shape[1:], len(images), height, width
            )
            of_images = _col2im(columns, weight)
            (above, left), (full_height, full_width) = padding, of_images.shape[2:]
            of_images = of_images[:, :, above : full_height - above, left : full_width - left]
        if wanted[1]:
            of_weight = (rows @ self._columns(images, weight, padding).t()).view(weight.shape)
        if wanted[2]:
            of_bias = gradient.sum((0, 2, 3))
        return of_images, of_weight, of_bias

    def _columns(
        self, images: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]
    ) -> torch.Tensor:
        key = (id(images), *weight.shape[2:], *padding)
        if key not in self._made:
            self._made[key] = images, _im2col(images, weight, padding)
        return self._made[key][1]


def _im2col(images: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]) -> torch.Tensor:
    """(C h w) x (N H' W'): what lies under each element of the kernel."""
    count, channels = images.shape[:2]
    size = _output_size(images, weight, padding)
    if any(padding):
        images = pad(images, (padding[1], padding[1], padding[0], padding[0]))
    # as_strided has the compiler write the images out first. Otherwise it would compute what
    # they come from (pooling, say) anew for every element of the kernel.
    images = images.clone(memory_format=torch.contiguous_format)
    image, channel, row, column = images.stride()
    columns = [
        images.as_strided(
            (channels, count, *size), (channel, image, row, column), above * row + left * column
        )
        for above in range(weight.shape[2])
        for left in range(weight.shape[3])
    ]
    return torch.stack(columns, 1).reshape(channels * len(columns), -1)


def _col2im(columns: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """C x h x w x N x H' x W' to N x C x H x W: a pixel sums the elements that it was under."""
    height, width = weight.shape[2:]
    total: torch.Tensor | None = None
    for above in range(height):
        for left in range(width):
            margins = (left, width - 1 - left, above, height - 1 - above)
            part = pad(columns[:, above, left], margins)
            total = part if total is None else total + part
    assert total is not None
    return total.transpose(0, 1)


def _output_size(
    images: torch.Tensor, weight: torch.Tensor, padding: Sequence[int]
) -> tuple[int, int]:
    height, width = (
        images.shape[2 + axis] + 2 * padding[axis] - weight.shape[2 + axis] + 1 for axis in (0, 1)
    )
    return height, width


def _plain_padding(
    weight: torch.Tensor, stride: Any, padding: Any, dilation: Any, transposed: bool, *rest: Any
) -> Sequence[int] | None:
    """The padding of a convolution that becomes a matrix product; None of any other."""
    plain = {*stride, *dilation, rest[-1]} == {1} and not transposed  # the last are the groups
    small = weight.ndim == 4 and weight.shape[2:].numel() <= MAX_KERNEL_ELEMENTS
    return padding if plain and small else None


@contextmanager
def im2col_convolutions() -> Iterator[None]:
    """Have what is compiled inside the `with` compute its plain convolutions as matrix products."""
    from torch._inductor.decomposition import decompositions

    made = Im2colConvolutions()
    replacements: dict[Any, Callable[..., Any]] = {
        torch.ops.aten.convolution.default: made.forward,
        torch.ops.aten.convolution_backward.default: made.backward,
    }
    # torch's caches do not see the difference by themselves.
    tagged = torch.compiler.config.patch(cache_key_tag=CACHE_TAG)  # type: ignore[attr-defined]
    with patch.dict(decompositions, replacements), tagged:
        yield
