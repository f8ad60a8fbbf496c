"""Convolutions as matrix products: the same values and gradients as torch's."""

import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchyard.core.training.execution.im2col import Im2colConvolutions, im2col_convolutions

PLAIN = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)


@settings(deadline=None)  # the first imports what torch's gradients need
@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 3),  # images, channels in and out
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 7)),
    more=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    padding=st.lists(st.integers(0, 2), min_size=2, max_size=2),
    with_bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_values_and_gradients_are_torchs(
    sizes, kernel, more, padding, with_bias, channels_last
) -> None:
    count, channels, outputs = sizes
    size = [length + rest for length, rest in zip(kernel, more, strict=True)]
    made = torch.Generator().manual_seed(0)
    images = torch.randn(count, channels, *size, generator=made, dtype=torch.float64)
    if channels_last:
        images = images.to(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels, *kernel, generator=made, dtype=torch.float64)
    bias = torch.randn(outputs, generator=made, dtype=torch.float64) if with_bias else None
    inputs = [tensor.requires_grad_() for tensor in (images, weight, bias) if tensor is not None]
    expected = nn.functional.conv2d(images, weight, bias, padding=padding)
    gradient = torch.randn(expected.shape, generator=made, dtype=torch.float64)
    plain = ([1, 1], padding, *PLAIN[2:])

    convolutions = Im2colConvolutions()
    with torch.no_grad():
        output = convolutions.forward(images, weight, bias, *plain)
        torch.testing.assert_close(output, expected)
        wanted = [True, True, with_bias]
        gradients = convolutions.backward(gradient, images, weight, None, *plain, wanted)
    for mine, theirs in zip(
        gradients, torch.autograd.grad(expected, inputs, gradient), strict=False
    ):
        torch.testing.assert_close(mine, theirs)
    assert (gradients[2] is None) == (not with_bias)


@pytest.mark.parametrize(
    ("shape", "changed"),
    [
        ((4, 3, 3, 3), {0: [2, 1]}),
        ((4, 3, 3, 3), {2: [1, 2]}),
        ((4, 3, 3, 3), {3: True}),
        ((4, 1, 3, 3), {5: 3}),
        ((4, 3, 3), {0: [1], 1: [0], 2: [1]}),
        ((4, 3, 9, 9), {}),
    ],
)
def test_what_is_no_plain_convolution_is_left_to_torch(shape, changed) -> None:
    chosen = [changed.get(position, value) for position, value in enumerate(PLAIN)]
    images, weight = torch.zeros(2, 3, *[12] * (len(shape) - 2)), torch.zeros(shape)
    convolutions = Im2colConvolutions()
    assert convolutions.forward(images, weight, None, *chosen) is NotImplemented
    output = convolutions.backward(images, images, weight, None, *chosen, [True] * 3)
    assert output is NotImplemented


def test_convolutions_of_the_same_images_are_kept_apart() -> None:
    made = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 9, 9, generator=made)
    convolutions = Im2colConvolutions()
    # On square images the columns of the first two are of one shape.
    for kernel, padding in (((3, 5), [0, 0]), ((5, 3), [0, 0]), ((3, 3), [1, 1]), ((1, 1), [0, 0])):
        weight = torch.randn(4, 3, *kernel, generator=made, requires_grad=True)
        expected = nn.functional.conv2d(images, weight, padding=padding)
        plain = ([1, 1], padding, *PLAIN[2:])
        with torch.no_grad():
            output = convolutions.forward(images, weight, None, *plain)
            torch.testing.assert_close(output, expected)
            _, of_weight, _ = convolutions.backward(
                torch.ones_like(output), images, weight, None, *plain, [False, True, False]
            )
        torch.testing.assert_close(of_weight, torch.autograd.grad(expected.sum(), weight)[0])


def test_afterwards_torch_compiles_as_before() -> None:
    from torch._inductor.decomposition import decompositions

    before = dict(decompositions)
    with contextlib.suppress(ZeroDivisionError), im2col_convolutions():
        assert decompositions != before
        raise ZeroDivisionError
    assert decompositions == before
