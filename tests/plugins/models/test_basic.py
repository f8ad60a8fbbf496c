"""The models: their layers, the sizes they take, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from torchyard import SampleSpec, UserError
from torchyard.core.hosting.manager import host
from torchyard.core.training.network import try_out

# One of every family of torchvision's (the 80 take a minute together), and its first
# convolution: outputs and kernel size.
FAMILIES = {
    "alexnet": (64, 11),
    "convnext_tiny": (96, 4),
    "densenet121": (64, 7),
    "efficientnet_b0": (32, 3),
    "efficientnet_v2_s": (24, 3),
    "googlenet": (64, 7),
    "inception_v3": (32, 3),
    "maxvit_t": (64, 3),
    "mnasnet0_5": (16, 3),
    "mobilenet_v2": (32, 3),
    "mobilenet_v3_small": (16, 3),
    "regnet_x_400mf": (32, 3),
    "regnet_y_400mf": (32, 3),
    "resnet18": (64, 7),
    "resnext50_32x4d": (64, 7),
    "shufflenet_v2_x0_5": (24, 3),
    "squeezenet1_1": (64, 3),
    "swin_t": (96, 4),
    "swin_v2_t": (96, 4),
    "vgg11_bn": (64, 3),
    "vit_b_32": (768, 32),
    "wide_resnet50_2": (64, 7),
}


def params(name, **chosen):
    return host().find("model", name).params.model_validate(chosen)


def parameters(name, shape, classes, **chosen):
    return try_out(params(name, **chosen), SampleSpec(shape, classes), name).parameters


def refusal(name, shape, classes=7):
    with pytest.raises(UserError) as caught:
        parameters(name, shape, classes)
    [problem] = caught.value.problems
    beginning = f"model: '{name}' cannot take samples of {'x'.join(map(str, shape))}: "
    assert problem.startswith(beginning)
    return problem.removeprefix(beginning)


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


# ---- torchvision's


def test_the_names_are_torchvisions():
    from torchvision import models

    found = {
        name
        for name, registration in host().registrations("model")
        if registration.source.origin.endswith("(torchyard.plugins.models.torchvision)")
    }
    assert found == set(models.list_models(module=models))
    assert FAMILIES.keys() <= found


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvisions_parameters_are_its_own_but_for_the_channels(name):
    from torchvision.models import get_model_weights

    published = get_model_weights(name).DEFAULT.meta["num_params"]
    if name == "inception_v3":
        published -= 3_326_696  # the auxiliary head, which is off
    outputs, kernel = FAMILIES[name]
    assert parameters(name, (1, 224, 224), 1000) == published - 2 * outputs * kernel**2


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "vgg11", "vit_b_16", "shufflenet_v2_x1_0"]
)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_some_of_torchvisions_take_small_images(name, channels):
    assert parameters(name, (channels, 32, 32), 7)


def test_a_vision_transformer_gets_the_images_size():
    at_32, at_64 = (parameters("vit_b_16", (3, side, side), 7) for side in (32, 64))
    assert at_64 - at_32 == ((64 // 16) ** 2 - (32 // 16) ** 2) * 768


def test_another_number_of_channels_changes_the_first_convolution_only():
    three, one = (params("resnet18").build((channels, 32, 32), 7) for channels in (3, 1))
    different = [
        name
        for name, weight in three.state_dict().items()
        if weight.shape != one.state_dict()[name].shape
    ]
    assert different == ["conv1.weight"]
    assert (one.conv1.stride, one.conv1.padding) == (three.conv1.stride, three.conv1.padding)
    assert one.conv1.bias is None


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_a_torchvision_network_trains_a_batch(name):
    network = params(name).build((1, 32, 32), 4)
    logits = network(torch.randn(3, 1, 32, 32))
    assert logits.shape == (3, 4)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 3])).backward()
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("name", ["lenet", "resnet18", "vit_b_16"])
def test_vectors_are_refused_by_what_takes_images(name):
    assert refusal(name, (12,)) == "takes images, not vectors; 'linear' and 'mlp' take both"


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("alexnet", (3, 32, 32), "too small"),
        ("vgg11", (1, 28, 28), "too small"),
        ("densenet121", (3, 28, 28), "too small"),
        ("inception_v3", (3, 32, 32), "Kernel size"),
        ("vit_b_16", (3, 40, 40), "square images whose side is a multiple of 16"),
        ("vit_b_16", (3, 33, 33), "square images whose side is a multiple of 16"),
        ("vit_b_32", (3, 32, 64), "square images whose side is a multiple of 32"),
        ("vit_h_14", (3, 32, 32), "square images whose side is a multiple of 14"),
        ("maxvit_t", (3, 32, 32), "not divisible by partition size"),
    ],
)
def test_images_that_do_not_fit_are_refused_with_the_reason(name, shape, reason):
    assert reason in refusal(name, shape)
