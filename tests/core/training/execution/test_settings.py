"""How training is carried out: what is chosen, what overrules it, and that nothing else changes."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchyard.core.config.schema import RunConfig, TrainConfig
from torchyard.core.data.dataset import Split
from torchyard.core.errors import UserError
from torchyard.core.training import batches, loop
from torchyard.core.training.events import EpochDone
from torchyard.core.training.execution.settings import Execution
from torchyard.core.training.network import DryRun, Normalize
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.state import TrainingState

CPU = torch.device("cpu")
LENET = DryRun(parameters=62_006, flops=1_300_000)
RESNET18 = DryRun(parameters=11_181_642, flops=74_000_000)
MOBILENET = DryRun(parameters=2_236_682, flops=12_250_000)


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


def chosen(size, batch_size, steps=1000, model=None, device=CPU, precision="auto", **settings):
    config = RunConfig.model_validate(
        {
            "dataset": {"name": "digits"},
            "precision": precision,
            "train": {"batch_size": batch_size} | settings,
        }
    )
    return Execution.choose(config, model or Small(), size, steps, device)


@pytest.fixture
def amx(monkeypatch):
    able = {"amx_bf16": True, "avx512_bf16": True, "cpu_name": "Intel Xeon"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)


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
    assert chosen(LENET, 128, device=torch.device("cuda")).precision == "float32"


def test_on_a_gpu_small_steps_become_a_graph():
    gpu = {"device": torch.device("cuda"), "precision": "float32"}
    assert chosen(LENET, 4, steps=1000, **gpu).compiled
    assert not chosen(LENET, 4, steps=10, **gpu).compiled
    assert not chosen(LENET, 4, steps=1000, compile=False, **gpu).compiled
    assert not chosen(LENET, 4, steps=1000, **gpu | {"precision": "float16"}).compiled
    assert not chosen(LENET, 4, steps=1000, accumulate=2, **gpu).compiled
    assert not chosen(LENET, 1_000_000, steps=1000, **gpu).compiled
    assert chosen(LENET, 1_000_000, steps=10, compile=True, **gpu).compiled


@pytest.mark.parametrize("able", [True, False])
def test_on_a_gpu_heavy_steps_are_rounded_where_it_can(monkeypatch, able):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: (8, 0) if able else (7, 5))
    gpu = {"device": torch.device("cuda"), "steps": 1000}
    found = chosen(RESNET18, 128, **gpu)
    assert (found.precision, found.channels_last) == (("float32", "bfloat16")[able], able)
    assert chosen(RESNET18, 128, compile=False, **gpu).precision == "float32"
    assert chosen(RESNET18, 100_000, **gpu).precision == ("float32", "bfloat16")[able]
    assert chosen(LENET, 128, **gpu).precision == "float32"
    assert not chosen(RESNET18, 128, channels_last=False, **gpu).channels_last


def test_without_amx_bfloat16_pays_sooner(monkeypatch):
    able = {"amx_bf16": False, "avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    large = chosen(RESNET18, 128)
    assert (large.precision, large.channels_last) == ("bfloat16", True)
    assert chosen(RESNET18, 32).precision == "float32"
    assert chosen(MOBILENET, 128, model=Small(groups=2)).precision == "float32"


@pytest.mark.parametrize(
    "able", [{"avx512_f": True}, {"avx512_bf16": True, "cpu_name": "Intel Xeon"}]
)
def test_a_processor_without_fast_bfloat16_keeps_float32(monkeypatch, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    large = chosen(LENET, 128)
    assert (large.precision, large.channels_last) == ("float32", True)
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
    with pytest.raises(
        UserError, match=r"train\.compile: is for float32 on a CPU, .* not for bfloat16 on cpu"
    ):
        chosen(LENET, 4, precision="bfloat16", compile=True)
    with pytest.raises(UserError, match="not for float16 on cuda"):
        chosen(LENET, 4, device=torch.device("cuda"), precision="float16", compile=True)
    with pytest.raises(ValueError, match="compile is for one process"):
        TrainConfig(compile=True, parallel="ddp")


def descent(network, **options):
    """The tutorial's optimizer, or another way of SGD."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    return torch.optim.SGD(weights, **{"lr": 0.05, "momentum": 0.9} | options)


def train(network, folder, precision="float32", optimizer=None, compiled=None, max_steps=None):
    """Train on 26 samples in batches of 4 for two epochs: the last batch is smaller."""
    generator = torch.Generator().manual_seed(3)
    samples = torch.randint(0, 256, (26, 4, 9, 9), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (26,), generator=generator)
    settings = TrainConfig(epochs=2, batch_size=4, seed=5, max_steps=max_steps)
    optimizer = optimizer or descent(network)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=15)
    if compiled is not None:
        compiled = compiled(optimizer)
    folder.mkdir(exist_ok=True)
    torch.manual_seed(7)
    events = []
    loop.fit(
        TrainingState(network, optimizer, schedule, device=CPU, precision=precision),
        nn.CrossEntropyLoss(),
        batches.TrainingData(Split(samples.numpy(), labels.numpy()), None, (), CPU),
        settings,
        strategy=Strategy(),
        whole=compiled,
        folder=folder,
        emit=events.append,
    )
    done = [event for event in events if isinstance(event, EpochDone)]
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


def test_images_are_put_in_order_where_they_are_normalized():
    execution = Execution(1, True, True, "float32", False)
    for shape in ((3, 8, 8), (5,)):
        layer = Normalize([0.5], [0.2], shape, 255.0)
        samples = torch.randint(0, 256, (4, *shape), dtype=torch.uint8)
        before = layer(samples)
        execution.apply(nn.Sequential(layer, nn.Linear(shape[-1], 2)))
        assert torch.equal(layer(samples), before)
        images = len(shape) == 3
        assert not images or layer(samples).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("compiled", "trimmed"), [(False, True), (True, False)])
def test_kernels_are_trimmed_unless_the_step_is_compiled(compiled, trimmed):
    layer = nn.Conv2d(2, 2, 3, padding=1)
    execution = Execution(1, True, False, "float32", compiled)
    work = []
    for _ in range(2):
        with FlopCounterMode(display=False) as counter:
            layer(torch.zeros(1, 2, 1, 1))
        work.append(counter.get_total_flops())
        execution.apply(layer)
    assert work[1] == (work[0] / 9 if trimmed else work[0])


def test_bfloat16_learns_nearly_the_same(network, tmp_path):
    _, figures = train(copy.deepcopy(network), tmp_path / "plain")
    _, others = train(copy.deepcopy(network), tmp_path / "rounded", precision="bfloat16")
    losses = [epoch.loss for epoch in others]
    assert losses == pytest.approx([epoch.loss for epoch in figures], rel=0.05)
    assert losses != [epoch.loss for epoch in figures]
