"""The check of a model finds what it is for."""

import inspect
import random

import numpy as np
import pytest
import torch
from torch import nn

from tests.core.testing.plugin_classes import plugin
from torchyard.core.hosting.host import host
from torchyard.testing import PluginFault, assert_model_plugin


class Net(nn.Module):
    """A linear model, to be spoilt."""

    def __init__(self, shape, classes):
        super().__init__()
        self.fc = nn.Linear(int(np.prod(shape)), classes)
        self.hidden = 1.0

    def forward(self, x):
        return self.fc(x.flatten(1))


def spoilt(forward, **attributes):
    def build(self, shape, classes):
        network = Net(shape, classes)
        for name, make in attributes.items():
            setattr(network, name, make())
        network.forward = lambda x: forward(network, x)
        return network

    return build


def other_classes(self, shape, classes):
    return Net(shape, classes + 1)


MODELS = {
    "classes": (other_classes, r"returns \(2, 11\) for 2 samples"),
    "nan": (spoilt(lambda n, x: Net.forward(n, x) * float("nan")), "logits: NaN or infinite"),
    "unreached": (
        spoilt(Net.forward, extra=lambda: nn.Linear(2, 2)),
        "gradient: none reaches extra.weight, extra.bias",
    ),
    "detached": (
        spoilt(lambda n, x: Net.forward(n, x).detach()),
        "training step: raises RuntimeError",
    ),
    "does not learn": (
        spoilt(lambda n, x: Net.forward(n, x) * 1e-6),
        "learning: the loss of 8 samples does not fall",
    ),
    "random": (
        spoilt(lambda n, x: Net.forward(n, x) + torch.rand(len(x), 10)),
        "evaluation: random in eval mode",
    ),
    "seed": (
        spoilt(lambda n, x: n.hidden * Net.forward(n, x), hidden=random.SystemRandom().random),
        "seed: built twice under one torch seed",
    ),
    "branches": (
        spoilt(lambda n, x: Net.forward(n, x) if x.sum() > 0 else 2 * Net.forward(n, x)),
        "export: raises NotExportableError",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_is_wrong(case):
    build, message = MODELS[case]
    with pytest.raises(PluginFault, match=message) as caught:
        assert_model_plugin(plugin("model", build), (1, 4, 4))
    assert str(caught.value).startswith(f"Thing ({inspect.getfile(plugin)}")


def test_a_state_outside_of_the_parameters_is_found():
    class Counting(Net):
        def forward(self, x):
            if self.training:
                self.hidden += 0.01
            return self.hidden * super().forward(x)

    with pytest.raises(PluginFault, match="neither a parameter nor a buffer"):
        assert_model_plugin(plugin("model", lambda self, *of: Counting(*of)), (1, 4, 4))


def test_a_model_may_be_excused_from_export():
    assert_model_plugin(plugin("model", MODELS["branches"][0]), (1, 4, 4), exports=False)


def test_vectors_are_taken():
    assert_model_plugin(host().find("model", "mlp").params(), (20,), 3)


def test_signals_are_taken():
    assert_model_plugin(host().find("model", "mlp").params(), (2, 12), 3)


def embedding(self, shape, classes):
    return nn.Sequential(nn.Embedding(30, 4), nn.Flatten(), nn.Linear(4 * shape[0], classes))


def test_token_ids_are_taken():
    model = plugin("model", embedding)
    assert_model_plugin(model, (9,), 3, vocabulary=30)
    with pytest.raises(PluginFault, match="logits of 1 samples: raises IndexError"):
        assert_model_plugin(model, (9,), 3, vocabulary=31)
    with pytest.raises(PluginFault, match="build: raises UserError: model: 'Thing' cannot take"):
        assert_model_plugin(model, (9,), 3)
