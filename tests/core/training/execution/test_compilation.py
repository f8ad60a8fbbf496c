"""The compiled step: it learns what torch's operations one by one do."""

import copy
import shutil

import pytest
import torch
from torch import nn

from tests.core.training.execution.test_settings import Small, assert_close, descent, train
from torchyard.core.errors import RunError
from torchyard.core.training.execution.compilation import CompiledStep


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return Small()


INPUTS = torch.zeros(4, 4, 9, 9, dtype=torch.uint8)
TARGETS = torch.zeros(4, dtype=torch.int64)


def step_of(network, optimizer, **options):
    batch = (INPUTS, TARGETS, TARGETS)
    return CompiledStep(network, nn.CrossEntropyLoss(), optimizer, *batch, **options)


@pytest.mark.slow  # the C++ compiler works for half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize(
    ("options", "updates"),
    [
        pytest.param({}, True, id="tutorial"),
        pytest.param({"momentum": 0.0}, True, id="no momentum"),
        pytest.param({"nesterov": True, "weight_decay": 0.01}, True, id="nesterov and decay"),
        pytest.param({"dampening": 0.5}, False, id="left to the optimizer"),
        pytest.param({"gradients_used": True}, False, id="gradients wanted"),
    ],
)
def test_a_compiled_step_learns_the_same(network, tmp_path, monkeypatch, options, updates):
    plain_network, other = copy.deepcopy(network), copy.deepcopy(network)
    for one in (plain_network, other):
        one.head.bias.requires_grad_(False)
    options = dict(options)
    gradients_used = options.pop("gradients_used", False)
    plain, figures = train(
        plain_network, tmp_path / "plain", optimizer=descent(plain_network, **options)
    )
    taken = []

    def compiled(optimizer):
        before = torch.random.get_rng_state()
        another = copy.deepcopy(network)
        batch = (INPUTS, TARGETS, TARGETS)
        CompiledStep(another, lambda logits, _: logits.sum(), descent(another), *batch)
        step = step_of(other, optimizer, gradients_used=gradients_used)
        assert step.updates is updates
        assert torch.equal(torch.random.get_rng_state(), before)
        assert_close(dict(network.state_dict()), dict(other.state_dict()), rtol=0, atol=0)
        assert not step.accepts(INPUTS[:2], TARGETS[:2], TARGETS[:2])
        assert not step.accepts(INPUTS.float(), TARGETS, TARGETS)
        accepts = step.accepts
        monkeypatch.setattr(step, "accepts", lambda *x: taken.append(accepts(*x)) or taken[-1])
        return step

    same, others = train(
        other, tmp_path / "compiled", optimizer=descent(other, **options), compiled=compiled
    )
    assert taken == ([True] * 6 + [False]) * 2
    assert_close(plain, same, rtol=1e-3, atol=1e-5)
    assert [epoch.accuracy for epoch in figures] == [epoch.accuracy for epoch in others]
    assert [epoch.loss for epoch in figures] == pytest.approx([epoch.loss for epoch in others])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_training_resumes_to_the_same_weights(network, tmp_path):
    def compiled(trained):
        return lambda optimizer: step_of(trained, optimizer)

    whole, first, second = (copy.deepcopy(network) for _ in range(3))
    expected, _ = train(whole, tmp_path / "whole", compiled=compiled(whole))
    train(first, tmp_path / "parts", compiled=compiled(first), max_steps=7)
    resumed, _ = train(second, tmp_path / "parts", compiled=compiled(second))
    assert_close(expected, resumed, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_a_compiled_step_takes_soft_targets_and_counts_by_the_labels(network):
    compiled, plain = copy.deepcopy(network), copy.deepcopy(network)
    images = torch.arange(4 * 4 * 9 * 9).remainder(251).to(torch.uint8).view(4, 4, 9, 9)
    torch.manual_seed(5)
    logits = plain(images)
    soft, labels = torch.eye(3)[[0, 1, 2, 0]] * 0.7 + 0.1, logits.argmax(1)
    labels[0] = (labels[0] + 1) % 3
    expected, other = nn.functional.cross_entropy(logits, soft), descent(plain)
    expected.backward()
    other.step()
    optimizer = descent(compiled)
    step = CompiledStep(compiled, nn.CrossEntropyLoss(), optimizer, INPUTS, soft * 0, TARGETS)
    torch.manual_seed(5)
    loss, right = step(images, soft, labels)
    assert int(right) == 3
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_close(compiled.state_dict(), plain.state_dict(), rtol=1e-3, atol=1e-5)


def test_what_cannot_be_compiled_says_so(network):
    def loss(logits, targets):
        torch._dynamo.graph_break()  # as where a plugin's loss leaves torch
        return nn.functional.cross_entropy(logits, targets)

    other = copy.deepcopy(network)
    with pytest.raises(RunError, match=r"train\.compile: torch cannot compile this: "):
        CompiledStep(other, loss, descent(other), INPUTS, TARGETS, TARGETS)


def test_a_lazy_layer_is_not_compiled(network):
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(RunError, match=r"train\.compile: torch cannot compile this: "):
        step_of(lazy, descent(lazy))


def test_a_compiled_step_has_no_convolution_left_a_second_one_neither(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    images, targets = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    for channels in (2, 3):
        network = nn.Sequential(nn.Conv2d(1, channels, 3), nn.Flatten(), nn.LazyLinear(3))
        network(images)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        step = CompiledStep(network, nn.CrossEntropyLoss(), optimizer, images, targets, targets)
        with torch.profiler.profile() as profile:
            step(images, targets, targets)
        names = {event.key for event in profile.key_averages()}
        assert any("CompiledFxGraph" in name for name in names)
        assert not [name for name in names if "conv" in name or "compile_inner" in name]
