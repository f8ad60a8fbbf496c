"""A step as a CUDA graph: equal to the usual one, and refused where it would not be."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

from torchyard.core.errors import RunError
from torchyard.core.training.execution import GraphedStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")

SIZES = (8, 8, 8, 3, 8, 8)  # an epoch's last batch is smaller


def batches():
    generator = torch.Generator().manual_seed(1)
    for size in SIZES:
        inputs = torch.randn(size, 3, 8, 8, generator=generator).cuda()
        labels = torch.randint(5, (size,), generator=generator).cuda()
        yield inputs, labels


class Small(nn.Module):
    def __init__(self, before=nn.Identity):
        super().__init__()
        self.before = before()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
            nn.Flatten(), nn.Linear(288, 5),
        )  # fmt: skip

    def forward(self, inputs):
        return self.layers(self.before(inputs))


def begun(make, before=nn.Identity):
    torch.manual_seed(3)
    network = Small(before).cuda().train()
    return network, make(network.parameters())


def usual(network, optimizer, scheduler, clip_norm, soft):
    for inputs, labels in batches():
        targets = F.one_hot(labels, 5).float() if soft else labels
        optimizer.zero_grad()
        loss = F.cross_entropy(network(inputs), targets)
        loss.backward()
        if clip_norm:
            nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
        optimizer.step()
        scheduler.step()
        yield loss.item()


def graphed(network, optimizer, scheduler, clip_norm, soft):
    step = GraphedStep(network, F.cross_entropy, optimizer, "float32", clip_norm=clip_norm)
    for inputs, labels in batches():
        batch = inputs, F.one_hot(labels, 5).float() if soft else labels, labels
        assert step.accepts(*batch), step.refusal
        loss, right = step(*batch)
        if not step.updates:
            if clip_norm:
                nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
            optimizer.step()
        assert 0 <= int(right) <= len(inputs)
        scheduler.step()
        yield loss.item()


def steady(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("schedule", [steady, one_cycle])
@pytest.mark.parametrize(
    "make",
    [
        lambda w: torch.optim.SGD(w, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        lambda w: torch.optim.SGD(w, 0.1, momentum=0.9, dampening=0.5),
        lambda w: torch.optim.SGD(w, 0.1, momentum=0.9, fused=True),
        lambda w: torch.optim.AdamW(w, 0.01),
        lambda w: torch.optim.Adam(w, 0.01, fused=True),
        lambda w: torch.optim.NAdam(w, 0.01),
        lambda w: torch.optim.RMSprop(w, 0.01, momentum=0.9),
    ],
    ids=["sgd", "dampened", "fused-sgd", "adamw", "fused-adam", "nadam", "rmsprop"],
)
def test_it_trains_as_the_usual_step_does(make, schedule, clip_norm, soft):
    ways = []
    for train in (usual, graphed):
        network, optimizer = begun(make)
        losses = list(train(network, optimizer, schedule(optimizer), clip_norm, soft))
        ways.append((losses, network.state_dict(), optimizer.state_dict()["param_groups"]))
    assert ways[1][0] == pytest.approx(ways[0][0], rel=2e-3)
    for name, value in ways[0][1].items():
        torch.testing.assert_close(ways[1][1][name], value, rtol=2e-3, atol=2e-4, msg=name)
    assert ways[1][2] == ways[0][2]


class Counting(nn.Module):
    count = 0

    def forward(self, inputs):
        self.count += 1
        return inputs * (1 + self.count)


class Drawing(nn.Module):
    def forward(self, inputs):
        return inputs * random.random()


class NumpyDrawing(nn.Module):
    def forward(self, inputs):
        return inputs * float(np.random.rand())


class HostDrawing(nn.Module):
    def forward(self, inputs):
        return inputs if torch.rand(()) < 0.5 else -inputs


class Waiting(nn.Module):
    def forward(self, inputs):
        return inputs if inputs.mean().item() < 0.5 else -inputs


class Replacing(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, inputs):
        self.mean = 0.9 * self.mean + inputs.mean()
        return inputs - self.mean


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Counting, "counts or draws"),
        (Drawing, "counts or draws"),
        (NumpyDrawing, "counts or draws"),
        (HostDrawing, "counts or draws"),
        (Waiting, "synchronizing"),
        (Replacing, "its buffers"),
    ],
)
def test_what_a_replay_would_not_repeat_is_refused_and_nothing_has_changed(layer, reason):
    network, optimizer = begun(lambda w: torch.optim.AdamW(w, 0.01), layer)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    host = random.getstate(), str(np.random.get_state())
    drawn = torch.cuda.get_rng_state(), torch.get_rng_state(), *host
    step = GraphedStep(network, F.cross_entropy, optimizer, "float32")
    inputs, labels = next(batches())
    assert not step.accepts(inputs, labels, labels)
    assert reason in str(step)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not optimizer.state
    assert torch.equal(torch.cuda.get_rng_state(), drawn[0])
    assert torch.equal(torch.get_rng_state(), drawn[1])
    assert random.getstate() == drawn[2]
    assert str(np.random.get_state()) == drawn[3]
    assert getattr(network.before, "count", 0) == 0
    network(inputs).mean().backward()  # it can still be trained as usual
    optimizer.step()
    required = GraphedStep(network, F.cross_entropy, optimizer, "float32", required=True)
    with pytest.raises(RunError, match=r"train\.compile: this cannot be a CUDA graph"):
        required.accepts(inputs, labels, labels)
