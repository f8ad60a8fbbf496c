"""The model `new_thing`: a small convolutional network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from torchyard import ModelParams, Register, hookimpl

if TYPE_CHECKING:
    from torch import nn


class NewThing(ModelParams):
    """Two 3x3 convolutions, the mean over the image, and a linear layer."""

    width: PositiveInt = Field(16, description="channels of the first convolution")

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Make the network: normalized float32 N x C x H x W to logits N x num_classes, for any N.

        Other samples are vectors (D,), signals (C, L) and, as int64, token ids (L,).

        Raises:
            ValueError: the samples are no images.
        """
        from torch import nn  # here, so that `torchyard plugins` stays quick

        if len(input_shape) != 3:
            raise ValueError("takes images, not vectors")
        return nn.Sequential(
            nn.Conv2d(input_shape[0], self.width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(self.width, 2 * self.width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),  # images of any size
            nn.Flatten(),
            nn.Linear(2 * self.width, num_classes),
        )


@hookimpl
def register_models(register: Register) -> None:
    """Registers `new_thing`."""
    register("new_thing", NewThing)
