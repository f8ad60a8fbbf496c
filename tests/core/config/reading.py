"""How the tests read a configuration, and the problems they find."""

from pathlib import Path

import pytest

from torchyard.core.config.resolve import read_config
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host

PRESETS = Path(__file__).parents[3] / "pipelines" / "presets"


SMALL = """\
dataset: {name: cifar10, normalize: [0.5, 0.25]}
model: {name: mlp, hidden: [8], dropout: 0.1}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
train: {epochs: 2}
"""


def read(source, *overrides):
    return read_config(source, overrides, PRESETS, host())


def problems(source, *overrides):
    with pytest.raises(UserError) as caught:
        read(source, *overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def only_problem(source, *overrides):
    [problem] = problems(source, *overrides)
    return problem
