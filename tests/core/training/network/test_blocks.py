"""The blocks of a network: what is deep in it."""

import torch
from torch import nn

from torchyard.core.training.network.blocks import depths


def test_a_lazy_layer_is_a_block_before_its_shape_is_known():
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2))
    before = depths(network)
    assert before == {"1.weight": 0, "1.bias": 0, "3.weight": 1, "3.bias": 1}
    network(torch.zeros(2, 1, 4, 4))
    assert depths(network) == before
