"""The events that a stage emits while it runs, and their form in JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, get_args


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
    """The metrics of one epoch, counted from 1; those of a validation are None without one.

    Attributes:
        validation_figures: of the validation, beside its loss and accuracy.
    """

    epoch: int
    step: int
    loss: float
    accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    learning_rate: float
    images_per_second: float
    seconds: float
    validation_figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GradientNorms:
    """The Euclidean norm of the last batch's gradient, by layer."""

    step: int
    norms: dict[str, float]


@dataclass(frozen=True)
class BatchSplit:
    """From this step on each batch is computed in so many parts, for want of memory."""

    step: int
    parts: int


@dataclass(frozen=True)
class StageProgress:
    """How far a stage has come: what is being done, samples done, samples in all."""

    description: str
    done: int
    total: int


@dataclass(frozen=True)
class GoesOn:
    """A training that was interrupted goes on from its checkpoint, in this epoch of so many."""

    epoch: int
    epochs: int


@dataclass(frozen=True)
class TrainingBatch:
    """The file with the first samples and labels of the training, augmented."""

    file: str


@dataclass(frozen=True)
class WeightsTaken:
    """What training begins with: which tensors were taken, in a line; the file and its sha256."""

    line: str
    file: str


# A run records these; the other events are for the display.
TrainingMetrics = RunningLoss | EpochDone | GradientNorms | BatchSplit
Event = Progress | StageProgress | GoesOn | TrainingBatch | WeightsTaken | TrainingMetrics
Emit = Callable[[Event], None]

_KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in get_args(Event)}


def as_plain(event: Event) -> dict[str, Any]:
    """An event as plain values, for JSON."""
    return {"kind": type(event).__name__, **asdict(event)}


def from_plain(plain: Mapping[str, Any]) -> Event:
    """The event that `as_plain` was called with.

    Raises:
        KeyError, TypeError: the values are not an event's.
    """
    fields = dict(plain)
    return _KINDS[fields.pop("kind")](**fields)
