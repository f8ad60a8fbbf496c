"""What a training tells while it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Where training is: steps done of the whole run, and the rate since the last report."""

    epoch: int
    step: int
    total_steps: int
    images_per_second: float


@dataclass(frozen=True)
class RunningLoss:
    """The mean loss of the batches since the last one; `step` counts over all epochs."""

    step: int
    loss: float


@dataclass(frozen=True)
class EpochDone:
    """The figures of one epoch, counted from 1; validation's are None without one."""

    epoch: int
    step: int
    loss: float
    accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class GradientNorms:
    """The Euclidean norm of the last batch's gradient, by layer."""

    step: int
    norms: dict[str, float]


Event = Progress | RunningLoss | EpochDone | GradientNorms
