"""The examples: the host loads them, they are right, and they train."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torchyard import SampleSpec
from torchyard.core.config.resolve import resolve
from torchyard.core.hosting.host import host
from torchyard.core.preparation.prepare import prepare_dataset
from torchyard.core.training.network import dry_run, export

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _examples(monkeypatch):
    """`host()` is read anew with the folder of the examples, and again after the test."""
    monkeypatch.setenv("TORCHYARD_PLUGINS", str(EXAMPLES))
    host.cache_clear()
    yield
    host.cache_clear()


@pytest.fixture
def swish():
    """The function, from the module as the host loaded it."""
    module = sys.modules[host().find("model", "swish_mlp").params.__module__]
    return module.swish_function().apply


def waves(tmp_path, **chosen):
    params = host().find("dataset", "wave_vectors").params(**chosen)
    return params, prepare_dataset("wave_vectors", params, tmp_path, lambda *_: None)


def test_every_example_is_loaded():
    assert host().broken == []
    for kind, name in (("model", "swish_mlp"), ("dataset", "wave_vectors")):
        found = host().find(kind, name)
        assert not found.builtin
        assert Path(found.source.origin).parent == EXAMPLES
        assert found.summary.endswith(".")
    files = {file.stem for file in EXAMPLES.glob("*.py")}
    assert files == {"swish_function", "wave_vectors"}


# ---- swish_function


@pytest.mark.parametrize("beta", [1.0, 0.3, -2.0])
def test_the_gradients_of_swish_are_those_of_its_forward(swish, beta):
    generator = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(4, 5, dtype=torch.float64, generator=generator)
    inputs = (x.requires_grad_(), torch.tensor(beta, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(swish, inputs)
    assert torch.autograd.gradgradcheck(swish, inputs)


def test_swish_is_its_formula(swish):
    x = torch.linspace(-9, 9, 50, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(swish(x, torch.ones(())), torch.nn.functional.silu(x))
    torch.testing.assert_close(swish(x, torch.tensor(0.5)), x / (1 + (-x / 2).exp()))


@pytest.mark.parametrize("shape", [(3, 8, 8), (20,)])
def test_the_model_takes_images_and_vectors(shape):
    params = host().find("model", "swish_mlp").params(width=7)
    network = dry_run(params, SampleSpec(shape, 4), "swish_mlp")
    features = int(np.prod(shape))
    assert network.parameters == 7 * features + 7 + 1 + 4 * 7 + 4
    network = params.build(shape, 4)
    samples = torch.rand(5, *shape)
    network(samples).square().sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad.abs().sum() > 0, name


def test_the_model_is_exported_with_its_own_function(tmp_path):
    _, found = waves(tmp_path)
    network = host().find("model", "swish_mlp").params().build(found.shape, 3)
    export(network, found, tmp_path / "model.pt2")
    again = torch.export.load(tmp_path / "model.pt2").module()
    samples = torch.from_numpy(found.test.samples)
    torch.testing.assert_close(again(samples), network(samples))


# ---- wave_vectors


def test_prepared_waves_are_as_described(tmp_path):
    params, found = waves(tmp_path, length=100, count=50)
    assert found.spec == params.describe()
    assert (found.shape, found.dtype) == ((51,), "float32")
    assert found.counts == {"train": 40, "test": 10}
    assert found.classes == ("sine", "square", "sawtooth")
    assert set(found.train.labels) == set(found.test.labels) == {0, 1, 2}


def test_the_seed_decides(tmp_path):
    digests = [waves(tmp_path / str(n), seed=seed)[1].digest for n, seed in enumerate((1, 1, 2))]
    assert digests[0] == digests[1] != digests[2]


def test_each_class_has_the_overtones_of_its_wave(tmp_path):
    _, found = waves(tmp_path)
    harmonics = {0: [], 1: [], 2: []}
    for spectrum, label in zip(found.train.samples, found.train.labels, strict=True):
        first = int(spectrum[2:60].argmax()) + 2
        if first < 40:
            near = [np.expm1(spectrum[k * first - k : k * first + k + 1].max()) for k in (1, 2, 3)]
            harmonics[int(label)].append([near[1] / near[0], near[2] / near[0]])
    second, third = np.array([np.median(harmonics[label], axis=0) for label in range(3)]).T
    # A sine has none, a square wave the odd ones, a sawtooth all.
    assert second[2] > 0.3
    assert max(second[:2]) < 0.2
    assert min(third[1:]) > 0.2
    assert third[0] < 0.15


@pytest.mark.parametrize("model", ["linear", "swish_mlp"])
def test_training_on_the_waves_lowers_the_loss(tmp_path, model):
    _, found = waves(tmp_path)
    resolved = resolve({"dataset": "wave_vectors", "model": model}, host())
    torch.manual_seed(0)
    network = resolved.model.build(found.shape, len(found.classes))
    loss_function = resolved.loss.build(len(found.classes))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    mean, std = torch.tensor(found.mean), torch.tensor(found.std)

    def both(split):
        return (torch.from_numpy(split.samples) - mean) / std, torch.from_numpy(split.labels)

    samples, labels = both(found.train)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = loss_function(network(samples), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3
    samples, labels = both(found.test)
    assert (network(samples).argmax(dim=1) == labels).float().mean() > 0.75
