"""The learning-rate range test: the loss while the rate grows from step to step.

Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.data.dataset import PreparedDataset, Split
from torchyard.core.errors import RunError
from torchyard.core.training.batches import Batch, Batches, steps_per_epoch
from torchyard.core.training.network import StartingWeights
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.step import Step
from torchyard.pipelines.worker.search.trial_training import TrialTraining

LOWEST, HIGHEST = 1e-7, 10.0
SMOOTHING = 0.98  # of the mean of the losses so far
DIVERGED = 4.0  # the test ends where the smoothed loss is so many times the least


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
