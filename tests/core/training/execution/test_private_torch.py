"""What rests on private parts of torch: off by a switch, and on versions that no test has seen."""

import copy

import pytest
import torch

from tests.core.training.execution.test_settings import LENET, Small, chosen, train
from torchyard.core.errors import UserError
from torchyard.core.training.execution.private_torch import PLAIN_TORCH, private_parts_refused

UNSEEN = "torch 2.99.0 is not one of the tested versions 2.11 to 2.15"


@pytest.fixture(params=["version", "switch"])
def reason(request, monkeypatch):
    """Why private parts are refused, by an unseen version or by the switch."""
    if request.param == "version":
        monkeypatch.setattr(torch, "__version__", "2.99.0")
        return UNSEEN
    monkeypatch.setenv(PLAIN_TORCH, "1")
    return "TORCHYARD_PLAIN_TORCH is set"


def test_the_installed_version_is_one_of_the_tested(monkeypatch):
    monkeypatch.delenv(PLAIN_TORCH, raising=False)
    assert private_parts_refused() is None


@pytest.mark.parametrize("version", ["2.11.0", "2.13.1", "2.15.0+cu132", "2.15.0a0+git12"])
def test_tested_versions_are_used_whole(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    assert private_parts_refused() is None


@pytest.mark.parametrize("version", ["2.10.9", "2.16.0", "2.16.0.dev20270101+cpu", "3.0", "1.15"])
def test_other_versions_are_refused_by_name(monkeypatch, version):
    monkeypatch.setattr(torch, "__version__", version)
    assert private_parts_refused().startswith(f"torch {version} is not one of the tested")


@pytest.mark.parametrize(("value", "refused"), [("", False), ("0", False), ("1", True)])
def test_the_switch(monkeypatch, value, refused):
    monkeypatch.setenv(PLAIN_TORCH, value)
    assert (private_parts_refused() is not None) is refused


def test_nothing_is_compiled_nor_trimmed_and_it_trains_all_the_same(reason, tmp_path):
    execution = chosen(LENET, 4, steps=1_000_000, precision="float32")
    assert not execution.compiled
    assert str(execution) == f"float32, 1 thread, plain torch: {reason}"
    torch.manual_seed(1)
    network = Small()
    padded = torch.nn.Conv2d(4, 4, 3, padding=1)
    plain = copy.deepcopy(network)
    execution.apply(torch.nn.Sequential(padded, network))
    assert "_conv_forward" not in vars(padded)
    weights, epochs = train(network, tmp_path / "refused")
    expected, _ = train(plain, tmp_path / "plain")
    assert len(epochs) == 2
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_asking_for_a_compiled_step_says_why_not(reason):
    with pytest.raises(UserError) as caught:
        chosen(LENET, 4, precision="float32", compile=True)
    assert caught.value.problems == [f"train.compile: cannot be had: {reason}"]


@pytest.mark.usefixtures("reason")
def test_a_gpu_has_none_of_it_anyway():
    assert chosen(LENET, 4, device=torch.device("cuda")).plain_torch is None
