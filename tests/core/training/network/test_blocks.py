"""The blocks of a network: what is deep in it."""

import torch
from torch import nn

from torchyard.core.training.network.blocks import depths


def test_a_norm_belongs_to_the_block_before_it_and_a_token_to_the_first():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(4))
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
            self.head = nn.Linear(4, 2)

    found = depths(Net())
    assert {name.removesuffix(".weight"): depth for name, depth in found.items()} == {
        **{"token": 0, "layers.0": 0, "layers.0.bias": 0, "layers.1": 0, "layers.1.bias": 0},
        **{"layers.2": 1, "layers.2.bias": 1, "head": 2, "head.bias": 2},
    }
