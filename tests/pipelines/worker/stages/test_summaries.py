"""What a data set holds and what a model is made of, from the stages themselves."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from torchyard import DatasetParams
from torchyard.core.config.choices import DatasetChoice
from torchyard.core.errors import RunError, UserError
from torchyard.pipelines.worker.stages import summaries
from torchyard.pipelines.worker.stages.summaries import (
    _LayerRecorder,
    _shape_of,
    _spec,
    _value_range,
)


def layers(shape=(1, 32, 32), classes=10, **model):
    config = {"dataset": {"name": "digits"}, "model": model}
    found = summaries.inspect_model(config, "nowhere", shape, classes, lambda event: None)
    return found, {layer["name"]: layer for layer in found["layers"]}


# ---- models


def test_every_layer_has_its_kind_output_and_parameters():
    found, by_name = layers(name="lenet")
    assert [by_name[name]["kind"] for name in ("conv1", "relu1", "fc3")] == [
        "Conv2d",
        "ReLU",
        "Linear",
    ]
    assert by_name["conv1"]["output"] == [2, 6, 28, 28]
    assert by_name["fc3"]["output"] == [2, 10]
    assert by_name["conv2"]["parameters"] == 16 * 6 * 25 + 16
    assert (by_name["relu1"]["parameters"], by_name["relu1"]["calls"]) == (0, 1)
    assert found["parameters"] == found["trained"] == 61_706
    assert sum(layer["parameters"] for layer in found["layers"]) == 61_706
    assert found["operations"] > 100_000


def test_shape_and_classes_decide_what_is_built():
    found, by_name = layers((3, 48, 48), 7, name="lenet")
    assert (found["shape"], found["classes"]) == ([3, 48, 48], 7)
    assert by_name["conv1"]["output"] == [2, 6, 44, 44]
    assert by_name["fc3"]["output"] == [2, 7]


def test_without_them_the_data_set_says_what_its_samples_are():
    found, _ = layers(None, None, name="linear")
    assert (found["shape"], found["classes"], found["parameters"]) == ([1, 32, 32], 10, 10_250)
    found, _ = layers(None, 3, name="linear")
    assert (found["shape"], found["classes"]) == ([1, 32, 32], 3)


def test_frozen_layers_are_not_trained():
    found, by_name = layers(name="lenet", freeze=["conv*", "fc1.bias"])
    assert by_name["conv1"]["trained"] == 0 < by_name["conv1"]["parameters"]
    assert by_name["fc1"]["trained"] == by_name["fc1"]["parameters"] - 120
    assert by_name["fc3"]["trained"] == by_name["fc3"]["parameters"]
    assert found["trained"] == 61_706 - 156 - 2_416 - 120


def test_a_model_that_cannot_take_the_samples_is_refused():
    with pytest.raises(UserError, match="'lenet' cannot take samples of 1x4x4: needs images"):
        layers((1, 4, 4), name="lenet")


class Odd(nn.Module):
    """Called twice, never called, with parameters beside modules, and tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.ReLU()
        self.never = nn.Linear(3, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, samples):
        samples = self.twice(self.twice(samples))
        return self.norm(
            self.attention(samples[:, None], samples[:, None], samples[:, None])[0][:, 0]
        )


def test_odd_layers_are_recorded_as_they_are():
    recorder, net = _LayerRecorder(), Odd()
    recorder.attach(nn.Linear(9, 9))  # forgotten
    recorder.attach(net)
    net(torch.zeros(2, 4))
    by_name = {layer.name: layer for layer in recorder.layers.values()}
    assert set(by_name) == {"twice", "never", "attention", "attention.out_proj", "norm"}
    assert (by_name["twice"].calls, by_name["twice"].output) == (2, [2, 4])
    assert (by_name["never"].calls, by_name["never"].output) == (0, None)
    assert by_name["attention"].output == [2, 1, 4]
    assert by_name["attention"].parameters == 3 * 4 * 4 + 3 * 4
    assert sum(layer.parameters for layer in by_name.values()) == sum(
        each.numel() for each in net.parameters()
    )


def test_the_shape_of_whatever_a_module_returns():
    tensor = torch.zeros(2, 3)
    for given in (tensor, (None, tensor), {"a": 1, "b": [tensor]}):
        assert _shape_of(given) == [2, 3]
    for given in (None, 3, (), {"a": "text"}):
        assert _shape_of(given) is None


class Unknown(DatasetParams):
    def build(self, downloads):
        raise NotImplementedError


def test_a_data_set_of_unknown_shape_says_how_to_know_it(tmp_path, monkeypatch):
    monkeypatch.setattr(summaries, "find_prepared", lambda *_: None)
    unknown, mine = Unknown(), DatasetChoice(name="mine")
    with pytest.raises(UserError, match="torchyard inspect mine …"):
        _spec(mine, unknown, tmp_path, None, None)
    with pytest.raises(UserError, match="give --classes"):
        _spec(mine, unknown, tmp_path, (3, 8, 8), None)
    assert _spec(mine, unknown, tmp_path, (3, 8, 8), 4).num_classes == 4


# ---- data sets


def test_range_and_counts_are_of_all_samples_however_they_are_read():
    samples = np.arange(5, 105, dtype=np.float32).reshape(50, 2)
    parts = [SimpleNamespace(samples=samples[:30]), SimpleNamespace(samples=samples[30:])]
    assert _value_range(parts) == [5, 104]
    assert _value_range(parts[::-1]) == [5, 104]


def test_a_data_set_that_is_not_prepared_is_not_looked_into(tmp_path):
    with pytest.raises(RunError, match="'digits' is not prepared"):
        summaries.inspect_dataset({"dataset": {"name": "digits"}}, str(tmp_path), print)
