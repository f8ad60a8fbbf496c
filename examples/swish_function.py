"""A model with a custom activation: forward and backward written by hand.

TORCHYARD_PLUGINS=examples torchyard run digits model=swish_mlp
"""

from __future__ import annotations

import math
from functools import cache

from torchyard import ModelParams, hookimpl


@cache
def swish_function():
    """The function x · sigmoid(beta · x), a torch.autograd.Function.

    Swish, Ramachandran et al., arXiv:1710.05941; with beta = 1 it is torch.nn.SiLU. The class
    is defined in a function because its base is torch's, whose import takes seconds.
    """
    import torch

    class SwishFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, beta):
            # backward computes the sigmoid again: saving it would double the memory.
            ctx.save_for_backward(x, beta)
            return x * torch.sigmoid(beta * x)

        @staticmethod
        def backward(ctx, grad):
            x, beta = ctx.saved_tensors
            s = torch.sigmoid(beta * x)
            derivative = s * (1 - s)  # of the sigmoid
            return grad * (s + beta * x * derivative), (grad * x * x * derivative).sum()

    return SwishFunction


class SwishMLP(ModelParams):
    """One hidden layer whose activation, Swish, learns its beta."""

    width: int = 64

    def build(self, input_shape, num_classes):
        """Make the network, for images or vectors."""
        import torch
        from torch import nn

        class Swish(nn.Module):
            def __init__(self):
                super().__init__()
                self.beta = nn.Parameter(torch.ones(()))

            def forward(self, x):
                return swish_function().apply(x, self.beta)

        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(input_shape), self.width),
            Swish(),
            nn.Linear(self.width, num_classes),
        )


@hookimpl
def register_models(register):
    """Registers `swish_mlp`."""
    register("swish_mlp", SwishMLP)
