"""A small split, network and training run, for the tests of several folders."""

import numpy as np
import torch
from torch import nn

from torchyard.core.config.schema import TrainConfig
from torchyard.core.data.dataset import Split
from torchyard.core.evaluation.figures import Figures
from torchyard.core.training import batches, loop
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.state import TrainingState

CPU = torch.device("cpu")


def make_split(count: int = 90, seed: int = 0) -> Split:
    """Three classes that a linear network can tell apart by their brightest quarter."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    samples = rng.integers(0, 120, (count, 1, 8, 8), dtype=np.uint8)
    for index, label in enumerate(labels):
        samples[index, 0, : 2 + 2 * label, :4] += 100
    return Split(samples, labels)


def make_network(dropout: float = 0.0) -> nn.Module:
    class Scale(nn.Module):
        def forward(self, samples: torch.Tensor) -> torch.Tensor:
            return samples.float() / 255 - 0.3

    torch.manual_seed(1)
    return nn.Sequential(Scale(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(64, 3))


def run_fit(folder, network, *, train=None, validation=None, emit=None, lr=0.1, momentum=0.9,
            precision="float32", loss=None, augmentations=(), figures=None, go_on=lambda: True,
            needs_closure=False, **settings):  # fmt: skip
    if validation is not None:
        settings["validation"] = 0.1  # the share is for who splits; here it is split already
    settings = TrainConfig(**({"epochs": 3, "batch_size": 8, "seed": 5, "log_every": 4} | settings))
    train = train or make_split()
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=lr, momentum=momentum)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    folder.mkdir(exist_ok=True)
    return loop.fit(
        TrainingState(
            network,
            optimizer,
            scheduler,
            device=CPU,
            precision=precision,
            ema=settings.ema,
            needs_closure=needs_closure,
        ),
        loss or nn.CrossEntropyLoss(),
        batches.TrainingData(train, validation, augmentations, CPU, figures or Figures()),
        settings,
        strategy=Strategy(),
        whole=None,
        folder=folder,
        emit=emit or (lambda event: None),
        go_on=go_on,
    )


def weights(network: nn.Module) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in network.parameters()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
