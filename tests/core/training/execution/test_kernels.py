"""Kernels without the elements that cover padding alone: the same outputs and gradients."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchyard.core.hosting.host import host
from torchyard.core.training.execution.kernels import covering, trim_kernels

small = st.integers(1, 5)
ways = st.tuples(small, st.integers(1, 7), st.integers(0, 3), st.integers(1, 3), st.integers(1, 2))


def outputs(size, kernel, padding, stride, dilation):
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def learned(network, images):
    """Outputs, and the gradients of images and weights, for some loss."""
    images = images.clone().requires_grad_()
    network.zero_grad()
    output = network(images)
    output.square().sum().backward()
    return [output.detach(), images.grad, *(weight.grad for weight in network.parameters())]


def alike(one, other):
    return all(torch.allclose(a, b) for a, b in zip(one, other, strict=True))


@given(rows=ways, columns=ways, groups=st.sampled_from([1, 2]), bias=st.booleans())
def test_a_trimmed_convolution_computes_and_learns_the_same(rows, columns, groups, bias):
    assume(outputs(*rows) > 0 and outputs(*columns) > 0)
    sizes, *settings = zip(rows, columns, strict=True)
    kernel, padding, stride, dilation = settings
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups, bias).double()
    images = torch.randn(3, 2, *sizes, dtype=torch.float64)
    whole = learned(layer, images)
    trim_kernels(layer)
    assert alike(learned(layer, images), whole)


@pytest.mark.parametrize(
    ("way", "elements"),
    [
        ((1, 3, 1, 1, 1), (slice(1, 2), 0)),
        ((2, 3, 1, 2, 1), (slice(1, 3), 0)),
        ((2, 3, 1, 1, 1), (slice(None), 1)),
        ((1, 7, 3, 2, 1), (slice(3, 4), 0)),
        ((1, 3, 2, 1, 1), (slice(None), 2)),  # three outputs: every element covers the pixel once
    ],
)
def test_which_elements_cover_the_image(way, elements):
    assert covering(*way) == elements


def test_a_resnet_on_small_images_multiplies_by_fewer_zeros_and_learns_the_same():
    torch.manual_seed(0)
    network = host().find("model", "resnet18").params().build((3, 32, 32), 10).double()
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)

    def work():
        with FlopCounterMode(display=False) as counter:
            found = learned(network, images)
        return found, counter.get_total_flops()

    (whole, much), names = work(), list(network.state_dict())
    trim_kernels(network)
    less_done, less = work()
    assert alike(less_done, whole)
    assert less < 0.85 * much
    assert list(network.state_dict()) == names


def test_a_kernel_that_is_frozen_is_trimmed_too_and_channels_may_be_last():
    layer = nn.Conv2d(3, 5, 3, padding=1).to(memory_format=torch.channels_last)
    layer.weight.requires_grad_(False)
    images = torch.randn(2, 3, 1, 1)
    whole = layer(images)
    trim_kernels(layer)
    assert torch.allclose(layer(images), whole, atol=1e-6)
    layer.weight.requires_grad_()
    layer(images).sum().backward()
    assert layer.weight.grad.is_contiguous(memory_format=torch.channels_last)
