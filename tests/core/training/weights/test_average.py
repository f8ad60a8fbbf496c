"""The average of weights: its values, buffers included, into the network and back."""

import copy

import torch
from torch import nn

from torchyard.core.training.weights.average import WeightAverage


def changing(network, steps):
    torch.manual_seed(1)
    for _ in range(steps):
        network(torch.randn(8, 4))  # batch norm's statistics
        with torch.no_grad():
            for weight in network.parameters():
                weight += torch.randn_like(weight)
        yield


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))


def test_it_is_the_moving_average_of_weights_and_buffers():
    network = make_network()
    average = WeightAverage(network, 0.5)
    expected = copy.deepcopy(network.state_dict())
    for step, _ in enumerate(changing(network, 20)):
        average.update()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            floats = tensor.is_floating_point()
            expected[name] = expected[name] * decay + tensor * (1 - decay) if floats else tensor
    with average.in_network():
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, expected[name])


def test_the_network_has_its_own_weights_again_afterwards():
    network = make_network()
    average = WeightAverage(network, 0.9)
    for _ in changing(network, 3):
        average.update()
    before = copy.deepcopy(network.state_dict())
    with average.in_network():
        inside = copy.deepcopy(network.state_dict())
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(inside["0.weight"], after["0.weight"])
    with average.in_network():
        assert all(torch.equal(inside[name], network.state_dict()[name]) for name in inside)


def test_saved_and_loaded_it_goes_on_alike():
    network, other = make_network(), make_network()
    average = WeightAverage(network, 0.9)
    for step, _ in enumerate(changing(network, 6)):
        average.update()
        if step == 2:
            saved = copy.deepcopy(average.state_dict())
    resumed = WeightAverage(other, 0.9)
    for step, _ in enumerate(changing(other, 6)):
        if step == 3:
            resumed.load_state_dict(saved)
        if step >= 3:
            resumed.update()
    average.copy_to_network()
    resumed.copy_to_network()
    assert torch.equal(network[0].weight, other[0].weight)
    assert torch.equal(network[1].running_mean, other[1].running_mean)
