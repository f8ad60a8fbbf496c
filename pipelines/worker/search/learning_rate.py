"""The learning-rate range test: the loss while the rate grows from step to step.

Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from torchyard.core.config.resolve import ResolvedConfig, resolve_once
from torchyard.core.data.dataset import PreparedDataset, Split
from torchyard.core.errors import RunError
from torchyard.core.hosting.host import host
from torchyard.core.training import device as devices
from torchyard.core.training.batches import Batch, Batches, steps_per_epoch, training_splits
from torchyard.core.training.events import Emit, StageProgress
from torchyard.core.training.network import StartingWeights
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.step import Step
from torchyard.pipelines.worker.checks.config_check import Config, starting_weights
from torchyard.pipelines.worker.search.batch_size import find_batch_size
from torchyard.pipelines.worker.search.trial_training import TrialTraining

LOWEST, HIGHEST = 1e-7, 10.0
SMOOTHING = 0.98  # of the mean of the losses so far
DIVERGED = 4.0  # the test ends where the smoothed loss is so many times the least


def find_learning_rate(
    config: Config, data: str, steps: int, emit: Emit, weights: str | None = None
) -> dict[str, Any]:
    """Train a little with growing learning rates; nothing of it is kept.

    Args:
        weights: the file with those of a run that `model.weights` names.

    Returns:
        rates, losses: of each step; suggestion: a rate; batch_size: of the steps.
    """
    resolved, prepared = resolve_once(config, host()), PreparedDataset.open(Path(data))
    device = devices.choose_device(resolved.config.device)
    train, _ = training_splits(prepared, resolved.config)
    start = starting_weights(resolved, weights)
    if resolved.config.train.batch_size == "auto":
        size = find_batch_size(resolved, prepared, train, device, start)
        resolved = resolved.with_batch_size(size)
    size = resolved.config.train.known_batch_size
    rates, losses = range_test(
        resolved,
        prepared,
        train,
        device,
        start,
        steps,
        lambda done: emit(StageProgress("learning rates", done, steps)),
    )
    suggestion = suggested_rate(rates, losses)
    return {"rates": rates, "losses": losses, "suggestion": suggestion, "batch_size": size}


def range_test(
    resolved: ResolvedConfig,
    prepared: PreparedDataset,
    train: Split,
    device: torch.device,
    start: StartingWeights | None,
    steps: int,
    on_step: Callable[[int], None],
) -> tuple[list[float], list[float]]:
    """The learning rates, growing exponentially, and the smoothed loss with each.

    Raises:
        RunError: the loss is not finite from the start.
    """

    def growing(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        base = optimizer.param_groups[0]["lr"]
        growth = (HIGHEST / LOWEST) ** (1 / (steps - 1))
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: LOWEST * growth**n / base)

    trial = TrialTraining.start(resolved, prepared, train, device, start, growing)
    step = Step(trial.state, trial.loss, resolved.config.train, Strategy(), None)
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for number, batch in enumerate(_batches(trial, resolved, device), 1):
        rate = trial.state.optimizer.param_groups[0]["lr"]
        loss = float(step(batch)[0])
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smoothed = mean / (1 - SMOOTHING**number)
        if not math.isfinite(smoothed) or (losses and smoothed > DIVERGED * min(losses)):
            break
        rates.append(rate)
        losses.append(smoothed)
        on_step(number)
        if number == steps:
            break
    if len(losses) < 2:
        raise RunError(f"lr-find: the loss is {loss} with a learning rate of {rate:.1e}")
    return rates, losses


def _batches(
    trial: TrialTraining, resolved: ResolvedConfig, device: torch.device
) -> Iterator[Batch]:
    """Batches of one epoch after the other."""
    settings = resolved.config.train
    batches = Batches(trial.data, settings, device)
    count, epoch = steps_per_epoch(len(trial.data.train), settings.known_batch_size), 0
    while True:
        yield from batches.epoch(epoch, 0, count, Strategy())
        epoch += 1


def suggested_rate(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate in the middle of the loss's longest fall, where it falls reliably.

    The fall is the longest decreasing subsequence of the losses, as in fastai's `valley`.
    """
    length = [1] * len(losses)  # of the longest fall that ends at each
    for end, loss in enumerate(losses):
        before = [length[start] for start in range(end) if losses[start] > loss]
        length[end] = 1 + max(before, default=0)
    end = max(range(len(losses)), key=lambda index: length[index])
    start = max(0, end - length[end])
    return rates[start + (end - start) // 2]
