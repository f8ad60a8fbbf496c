"""The models: their layers, the sizes they take, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from tests.plugins.models.trying import parameters, params, refusal

# ---- lenet


class Blitz(nn.Module):
    """The tutorial's network as the tutorial writes it."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, images):
        images = self.pool(nn.functional.relu(self.conv1(images)))
        images = self.pool(nn.functional.relu(self.conv2(images)))
        flat = torch.flatten(images, 1)
        flat = nn.functional.relu(self.fc1(flat))
        flat = nn.functional.relu(self.fc2(flat))
        return self.fc3(flat)


def test_lenet_is_the_blitzs_network():
    torch.manual_seed(0)
    lenet = params("lenet").build((3, 32, 32), 10)
    torch.manual_seed(0)
    blitz = Blitz()
    assert lenet.state_dict().keys() == blitz.state_dict().keys()
    for name, weight in blitz.state_dict().items():
        assert torch.equal(lenet.state_dict()[name], weight), name  # drawn in the same order
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(lenet(images), blitz(images))


@pytest.mark.parametrize(("channels", "count"), [(3, 62_006), (1, 61_706)])
def test_lenets_parameters(channels, count):
    assert parameters("lenet", (channels, 32, 32), 10) == count


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(16, 64), st.integers(16, 64), st.integers(1, 12))
def test_lenet_takes_any_image_of_16_pixels_or_more(channels, height, width, classes):
    assert parameters("lenet", (channels, height, width), classes)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 15), st.integers(1, 64), st.booleans())
def test_lenet_refuses_smaller_images(small, other, upright):
    shape = (3, other, small) if upright else (3, small, other)
    assert refusal("lenet", shape).startswith("needs images of at least 16x16")


# ---- linear and mlp


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (17,), (1,)])
def test_linear_is_one_layer(shape):
    features = math.prod(shape)
    assert parameters("linear", shape, 7) == features * 7 + 7
    assert parameters("linear", shape, 7, bias=False) == features * 7
    network = params("linear").build(shape, 7)
    samples = torch.randn(3, *shape)
    expected = samples.reshape(3, -1) @ network[1].weight.T + network[1].bias
    torch.testing.assert_close(network(samples), expected)


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", torch.relu), ("gelu", nn.functional.gelu), ("tanh", torch.tanh)],
)
def test_mlp_is_linear_layers_with_the_activation_between(activation, function):
    network = params("mlp", hidden=(5, 4), activation=activation).build((2, 3, 3), 7)
    layers = [layer for layer in network if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [
        (18, 5),
        (5, 4),
        (4, 7),
    ]
    flat = samples = torch.randn(3, 2, 3, 3)
    flat = flat.flatten(1)
    for layer in layers[:-1]:
        flat = function(layer(flat))
    torch.testing.assert_close(network(samples), layers[-1](flat))


def test_mlp_without_hidden_layers_is_linear():
    assert parameters("mlp", (3, 4, 4), 7, hidden=()) == parameters("linear", (3, 4, 4), 7)


def test_mlp_drops_out_in_training_only():
    network = params("mlp", dropout=0.5).build((64,), 7)
    samples = torch.randn(8, 64)
    assert not torch.equal(network(samples), network(samples))
    network.eval()
    assert torch.equal(network(samples), network(samples))
    assert not any(isinstance(layer, nn.Dropout) for layer in params("mlp").build((4,), 2))


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("lenet", {"width": 3}),
        ("linear", {"bias": "perhaps"}),
        ("mlp", {"hidden": (0,)}),
        ("mlp", {"hidden": (2.5,)}),
        ("mlp", {"dropout": 1}),
        ("mlp", {"activation": "swish"}),
        ("resnet18", {"pretrained": True}),
    ],
)
def test_what_is_out_of_range_is_refused(name, chosen):
    with pytest.raises(ValidationError):
        params(name, **chosen)


@pytest.mark.parametrize("name", ["lenet", "resnet18", "vit_b_16"])
def test_vectors_are_refused_by_what_takes_images(name):
    assert refusal(name, (12,)) == "takes images, not vectors; 'linear' and 'mlp' take both"
