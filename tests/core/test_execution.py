"""How training is carried out: what is chosen, what overrules it, and that nothing else changes."""

import copy
import shutil

import pytest
import torch
from torch import nn

from core import training
from core.compilation import CompiledGradients
from core.config import RunConfig, TrainConfig
from core.errors import RunError, UserError
from core.execution import Execution
from core.network import Trial

CPU = torch.device("cpu")
LENET = Trial(parameters=62_006, flops=1_300_000)
RESNET18 = Trial(parameters=11_181_642, flops=74_000_000)
MOBILENET = Trial(parameters=2_236_682, flops=12_250_000)


class Small(nn.Module):
    """Convolution, batch norm and dropout: buffers and random numbers beside the weights."""

    def __init__(self, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, groups=groups)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(8, 3)

    def forward(self, samples):
        found = torch.relu(self.norm(self.conv(samples.float() / 255)))
        return self.head(self.drop(found.amax((2, 3))))


def chosen(trial, batch_size, steps=1000, model=None, place=CPU, precision="auto", **settings):
    config = RunConfig.model_validate(
        {
            "dataset": {"name": "digits"},
            "precision": precision,
            "train": {"batch_size": batch_size} | settings,
        }
    )
    return Execution.choose(config, model or Small(), trial, steps, place)


@pytest.fixture
def amx(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})


@pytest.mark.usefixtures("amx")
def test_the_choice_follows_model_batch_and_length():
    tiny = chosen(LENET, 4)
    assert (tiny.threads, tiny.onednn, tiny.compiled) == (1, False, False)
    assert str(tiny) == "float32, 1 thread"
    assert chosen(LENET, 4, steps=1_000_000).compiled
    assert not chosen(LENET, 128, steps=1_000_000).compiled
    large = chosen(LENET, 128)
    assert (large.precision, large.channels_last, large.onednn) == ("bfloat16", True, True)
    assert str(large).startswith("bfloat16, ")
    assert str(large).endswith(", channels last")
    few_uses = chosen(RESNET18, 128)  # each weight is converted for little work
    assert (few_uses.precision, few_uses.channels_last) == ("float32", False)
    assert chosen(RESNET18, 512).precision == "bfloat16"
    grouped = chosen(MOBILENET, 128, model=Small(groups=2))
    assert (grouped.precision, grouped.channels_last) == ("float32", True)
    assert chosen(LENET, 4, model=Small(groups=2)).onednn
    assert chosen(LENET, 128, place=torch.device("cuda")).precision == "float32"


def test_a_processor_without_bfloat16_keeps_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert chosen(LENET, 128).precision == "float32"
    assert chosen(LENET, 128, precision="bfloat16").precision == "bfloat16"


@pytest.mark.usefixtures("amx")
def test_a_setting_overrules_each_choice():
    assert chosen(LENET, 128, precision="float32").precision == "float32"
    assert chosen(LENET, 4, precision="float16").precision == "float16"
    assert not chosen(LENET, 128, channels_last=False).channels_last
    assert chosen(LENET, 4, channels_last=True).channels_last
    assert chosen(LENET, 4, threads=2).threads == 2
    assert chosen(LENET, 128, compile=True).compiled
    assert chosen(LENET, 128, compile=True).precision == "float32"
    assert not chosen(LENET, 4, steps=1_000_000, compile=False).compiled


def test_compiling_is_refused_where_it_cannot_be():
    with pytest.raises(UserError, match=r"train\.compile: is for float32 on a CPU, not bfloat16"):
        chosen(LENET, 4, precision="bfloat16", compile=True)
    with pytest.raises(UserError, match="not float32 on cuda"):
        chosen(LENET, 4, place=torch.device("cuda"), compile=True)
    with pytest.raises(ValueError, match="compile is for one process"):
        TrainConfig(compile=True, parallel="ddp")


def train(network, folder, precision="float32", compiled=None):
    """Train on 26 samples in batches of 4 for two epochs: the last batch is smaller."""
    from core.dataset import Split

    generator = torch.Generator().manual_seed(3)
    samples = torch.randint(0, 256, (26, 4, 9, 9), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (26,), generator=generator)
    settings = TrainConfig(epochs=2, batch_size=4, seed=5)
    optimizer = torch.optim.SGD(
        [weight for weight in network.parameters() if weight.requires_grad], lr=0.05, momentum=0.9
    )
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    folder.mkdir()
    torch.manual_seed(7)
    events = []
    training.fit(
        network,
        nn.CrossEntropyLoss(),
        optimizer,
        schedule,
        Split(samples.numpy(), labels.numpy()),
        None,
        settings,
        device=CPU,
        data_device=CPU,
        precision=precision,
        folder=folder,
        emit=events.append,
        compiled=compiled,
    )
    done = [event for event in events if isinstance(event, training.EpochDone)]
    return network.state_dict(), done


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return Small()


def assert_close(left, right, **tolerance):
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], **tolerance)


def test_channels_last_learns_the_same(network, tmp_path):
    plain, figures = train(copy.deepcopy(network), tmp_path / "plain")
    other = copy.deepcopy(network)
    Execution(1, True, True, "float32", False).apply(other)
    assert other.conv.weight.is_contiguous(memory_format=torch.channels_last)
    last, others = train(other, tmp_path / "last")
    assert_close(plain, last, rtol=1e-3, atol=1e-5)
    assert [epoch.accuracy for epoch in figures] == [epoch.accuracy for epoch in others]


def test_bfloat16_learns_nearly_the_same(network, tmp_path):
    _, figures = train(copy.deepcopy(network), tmp_path / "plain")
    _, others = train(copy.deepcopy(network), tmp_path / "rounded", precision="bfloat16")
    losses = [epoch.loss for epoch in others]
    assert losses == pytest.approx([epoch.loss for epoch in figures], rel=0.05)
    assert losses != [epoch.loss for epoch in figures]


@pytest.mark.slow  # the C++ compiler works for half a minute
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_gradients_learn_the_same(network, tmp_path, monkeypatch):
    plain_network, other = copy.deepcopy(network), copy.deepcopy(network)
    for one in (plain_network, other):
        one.head.bias.requires_grad_(False)
    plain, figures = train(plain_network, tmp_path / "plain")
    before = torch.random.get_rng_state()
    inputs, targets = torch.zeros(4, 4, 9, 9, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    CompiledGradients(copy.deepcopy(network), lambda logits, _: logits.sum(), inputs, targets)
    compiled = CompiledGradients(other, nn.CrossEntropyLoss(), inputs, targets)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(other.norm.running_mean, network.norm.running_mean)
    assert not compiled.takes(inputs[:2])
    assert not compiled.takes(inputs.float())

    taken, gradients = [], compiled.takes
    monkeypatch.setattr(compiled, "takes", lambda x: taken.append(gradients(x)) or taken[-1])
    same, others = train(other, tmp_path / "compiled", compiled=compiled)
    assert taken == ([True] * 6 + [False]) * 2
    assert_close(plain, same, rtol=1e-3, atol=1e-5)
    assert [epoch.accuracy for epoch in figures] == [epoch.accuracy for epoch in others]
    assert [epoch.loss for epoch in figures] == pytest.approx([epoch.loss for epoch in others])


def test_what_cannot_be_compiled_says_so(network):
    def loss(logits, targets):
        torch._dynamo.graph_break()  # as where a plugin's loss leaves torch
        return nn.functional.cross_entropy(logits, targets)

    inputs, targets = torch.zeros(4, 4, 9, 9, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(RunError, match=r"train\.compile: torch cannot compile this: "):
        CompiledGradients(copy.deepcopy(network), loss, inputs, targets)
