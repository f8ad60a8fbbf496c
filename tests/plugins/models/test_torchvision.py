"""torchvision's models: which there are, their size, and what they refuse."""

import pytest
import torch
from torch import nn

from tests.plugins.models.trying import parameters, params, refusal
from torchyard.core.hosting.host import host

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
