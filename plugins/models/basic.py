"""Small models: the network of the 60-minute blitz, a linear one, a perceptron."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt

from torchyard import ModelParams, Register, hookimpl

if TYPE_CHECKING:
    from torch import nn


class LeNet(ModelParams):
    """The 60-minute blitz's network: two 5x5 convolutions, then three linear layers.

    The tutorial's at 32x32, for any number of channels; for images of another size the first
    linear layer has as many inputs as the convolutions have outputs. ReLU follows the pooling:
    the two commute, and a quarter of the values is left (`benchmarks/reasons/plugins.md`).
    https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
    """

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make the network; images must be 16 pixels or more each way."""
        from torch import nn

        if len(input_shape) != 3:
            raise ValueError("takes images, not vectors; 'linear' and 'mlp' take both")
        channels, height, width = input_shape
        if min(height, width) < 16:
            raise ValueError("needs images of at least 16x16: two 5x5 convolutions and poolings")

        def side(pixels: int) -> int:
            return ((pixels - 4) // 2 - 4) // 2

        return nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 6, 5),
                pool1=nn.MaxPool2d(2),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(6, 16, 5),
                pool2=nn.MaxPool2d(2),
                relu2=nn.ReLU(),
                flatten=nn.Flatten(),
                fc1=nn.Linear(16 * side(height) * side(width), 120),
                relu3=nn.ReLU(),
                fc2=nn.Linear(120, 84),
                relu4=nn.ReLU(),
                fc3=nn.Linear(84, num_classes),
            )
        )


class Linear(ModelParams):
    """One linear layer on the flattened sample: softmax regression."""

    bias: bool = True

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make the layer."""
        from torch import nn

        features = math.prod(input_shape)
        return nn.Sequential(nn.Flatten(), nn.Linear(features, num_classes, bias=self.bias))


class MLP(ModelParams):
    """A multilayer perceptron on the flattened sample."""

    hidden: tuple[PositiveInt, ...] = Field((256, 128), description="widths of the hidden layers")
    activation: Literal["relu", "gelu", "tanh"] = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make the network."""
        from torch import nn

        activation = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}[self.activation]
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(input_shape)
        for hidden in self.hidden:
            layers += [nn.Linear(width, hidden), activation()]
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
            width = hidden
        return nn.Sequential(*layers, nn.Linear(width, num_classes))


@hookimpl
def register_models(register: Register) -> None:
    register("lenet", LeNet)
    register("linear", Linear)
    register("mlp", MLP)
