"""A training of LeNet in its process, made once; it trains for as long as each line of input says.

Prints images per second for each line; at the start, how the arithmetic is carried out.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.own.settings import configuration
from torchyard.core.config.resolve import resolve_once
from torchyard.core.data.dataset import PreparedDataset, Split
from torchyard.core.hosting.host import host
from torchyard.core.training import batches, loop
from torchyard.core.training.events import Event, RunningLoss
from torchyard.core.training.execution import Execution
from torchyard.core.training.network import Network
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.state import TrainingState
from torchyard.pipelines.worker.checks.config_check import model_size

IMAGES, SHAPE, CLASSES = 20_000, (3, 32, 32), 10
CPU = torch.device("cpu")


class _Enough(Exception):  # noqa: N818 - not an error
    """It has trained for long enough."""


def main(*overrides: str) -> None:
    """Make the training, then train for the seconds of each line."""
    config = configuration("cifar10", ["train.epochs=10000", "train.log_every=10", *overrides])
    resolved = resolve_once(config, host())
    settings = resolved.config.train
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, *SHAPE), dtype=np.uint8)
    split = Split(images, rng.integers(0, CLASSES, IMAGES))
    names = tuple(map(str, range(CLASSES)))
    means, stds = (0.5,) * SHAPE[0], (0.25,) * SHAPE[0]
    data = PreparedDataset(Path(), "noise", names, SHAPE, "uint8", means, stds, {}, "", "")
    network = Network(resolved.model.build(SHAPE, CLASSES), data, "statistics")
    steps = batches.total_steps(IMAGES, settings)
    size, _ = model_size(resolved, data.spec)
    execution = Execution.choose(resolved.config, network.model, size, steps, CPU)
    execution.apply(network)
    optimizer = resolved.optimizer.build(list(network.parameters()))
    scheduler = resolved.scheduler.build(optimizer, steps)
    state = TrainingState(network, optimizer, scheduler, device=CPU, precision=execution.precision)
    loss = resolved.loss.build(CLASSES)

    def train(seconds: float) -> float:
        # From here, not from its first batch: beside another it may wait for its turn first.
        told = [(time.perf_counter(), state.position.step)]

        def emit(event: Event) -> None:
            if isinstance(event, RunningLoss):
                told.append((time.perf_counter(), event.step))
                if told[-1][0] - told[0][0] >= seconds:
                    raise _Enough

        training = batches.TrainingData(split, None, [], CPU)
        with tempfile.TemporaryDirectory() as folder:
            try:
                loop.fit(state, loss, training, settings, Strategy(), None, Path(folder), emit)
            except _Enough:
                state.position.batch = 0
        (first, begin), *_, (last, end) = told
        return (end - begin) * settings.known_batch_size / (last - first)

    train(0.3)
    print(execution, flush=True)
    for line in sys.stdin:
        print(train(float(line)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
