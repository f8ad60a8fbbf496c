"""`fit()`: the training loop, top to bottom.

Samples stay as they are stored (uint8), on the device where they fit; the network's first
layer normalizes. Losses stay on the device and are read at log points only, because every
read makes the CPU wait for the GPU. What happens is reported through `emit`; nothing here
knows of progress bars, MLflow or Prefect.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from torchyard.core.config.schema import TrainConfig
from torchyard.core.data.checkpoint_file import BEST, LAST
from torchyard.core.errors import DivergedError
from torchyard.core.evaluation.predict import predict
from torchyard.core.hosting.params import Loss
from torchyard.core.training import checkpoint
from torchyard.core.training.batches import Batches, TrainingData, steps_per_epoch, total_steps
from torchyard.core.training.events import (
    BatchSplit,
    EpochDone,
    Event,
    GoesOn,
    GradientNorms,
    Progress,
    RunningLoss,
)
from torchyard.core.training.execution import WholeStep
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.state import TrainingState
from torchyard.core.training.step import Step
from torchyard.core.training.turns import in_turn

CHECKPOINT_SECONDS = 30.0  # between checkpoints within an epoch; checked at log points
PROGRESS_SECONDS = 0.25


@dataclass(frozen=True)
class FitResult:
    """How training ended. The network holds the best weights where there was a validation.

    Attributes:
        epochs: epochs finished; steps: batches trained.
        best_epoch: the epoch whose weights were kept.
        file: the checkpoint in the folder that has them.
        stopped_early: whether patience ran out.
        seconds: time in training steps.
        images_per_second: samples trained on in that time.
    """

    epochs: int
    steps: int
    best_epoch: int
    file: str
    stopped_early: bool
    seconds: float
    images_per_second: float


def fit(
    state: TrainingState,
    loss_function: Loss,
    data: TrainingData,
    settings: TrainConfig,
    strategy: Strategy,
    whole: WholeStep | None,
    folder: Path,
    emit: Callable[[Event], None],
    go_on: Callable[[], bool] = lambda: True,
) -> FitResult:
    """Train the state's network in place, from the folder's last checkpoint if it has one.

    Args:
        state: what is trained.
        loss_function: (logits, targets) to a scalar.
        data: what it is trained on.
        settings: epochs, batch size and the rest.
        strategy: the processes that train together; each calls `fit` with the same arguments.
        whole: does the step of the batches it takes at once; in a single process.
        folder: for the checkpoints `last.pt` and `previous.pt`, and the best weights, `best.pt`.
        emit: called with progress, running losses and finished epochs.
        go_on: asked before each epoch, in a single process: False ends the training there, with
            a checkpoint.

    Raises:
        DivergedError: the loss became NaN or infinite; the last good checkpoint stays.
        RunError: a checkpoint cannot be written or read.
    """
    # ---- where to start
    found = checkpoint.find(folder) if strategy.is_main else None
    if strategy.broadcast(found is not None):
        state.load(found, strategy)
    position, patience = state.position, settings.patience
    position.parts = max(position.parts, settings.accumulate)
    network, device = state.network, state.device

    # ---- what is trained on, and how
    batches = Batches(data, settings, device)
    step = Step(state, loss_function, settings, strategy, whole)
    batches_per_epoch = steps_per_epoch(len(data.train), settings.known_batch_size)
    last_step = total_steps(len(data.train), settings)

    def out_of_patience() -> bool:
        return patience is not None and position.epoch - position.best_epoch >= patience

    # ---- the loop
    losses = torch.zeros(settings.log_every, device=device)
    sizes = torch.zeros(settings.log_every, dtype=torch.float64)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    saved = time.monotonic()

    def goes_on() -> bool:
        unfinished = position.epoch < settings.epochs and position.step < last_step
        return unfinished and not out_of_patience() and go_on()

    if position.step and position.epoch < settings.epochs and not out_of_patience():
        emit(GoesOn(position.epoch + 1, settings.epochs))
    while goes_on():
        network.train()
        step.begin_epoch(position.epoch)
        # A run that ends within an epoch finishes that epoch: its metrics are reported.
        epoch_end = min(batches_per_epoch, position.batch + last_step - position.step)
        pending = 0  # batches whose loss has not been read yet
        clock = reported = time.perf_counter()
        reported_step = position.step

        to_do = batches.epoch(position.epoch, position.batch, epoch_end, strategy)
        for batch in in_turn(to_do, device, strategy):
            learning_rate = state.optimizer.param_groups[0]["lr"]
            parts = position.parts
            losses[pending], right = step(batch)
            if position.parts != parts:
                emit(BatchSplit(position.step + 1, position.parts))
            sizes[pending] = batch.size
            if batch.weight:
                correct += right
            pending += 1
            position.batch += 1
            position.step += 1

            now = time.perf_counter()
            if now - reported >= PROGRESS_SECONDS:
                rate = (
                    (position.step - reported_step) * settings.known_batch_size / (now - reported)
                )
                emit(Progress(position.epoch + 1, position.step, last_step, rate))
                reported, reported_step = now, position.step

            # -- log point: the only place where the CPU waits for the device
            if position.step % settings.log_every == 0 or position.batch == epoch_end:
                values = strategy.all_reduce_mean(losses[:pending]).cpu().double()
                if not values.isfinite().all():
                    first = int((~values.isfinite()).nonzero()[0])
                    raise DivergedError(
                        f"The loss became {values[first].item()} in epoch {position.epoch + 1} at "
                        f"step {position.step - pending + first + 1}; a lower optimizer.lr or a "
                        f"train.clip_norm may help.{_last_good(folder)}"
                    )
                position.loss_sum += float(values @ sizes[:pending])
                position.seen += int(sizes[:pending].sum())
                position.correct += int(strategy.all_reduce_sum(correct))
                correct.zero_()
                position.seconds += time.perf_counter() - clock
                clock, pending = time.perf_counter(), 0
                emit(RunningLoss(position.step, values.mean().item()))
                if settings.log_gradients:
                    emit(GradientNorms(position.step, gradient_norms(network)))
                due = strategy.broadcast(time.monotonic() - saved > CHECKPOINT_SECONDS)
                if due and position.batch < epoch_end:
                    _check_weights(state, folder)  # the last update is in no loss yet
                    state.save(folder / LAST, strategy)
                    saved = time.monotonic()

        # ---- the epoch's end: validate, keep the best, report
        _check_weights(state, folder)
        figures: dict[str, float] = {}
        position.epoch += 1
        with state.averaged():
            if data.validation is not None:
                # The main process alone predicts; the others wait for it.
                figures = strategy.broadcast(validate(state, data) if strategy.is_main else {})
            monitored = figures.get(settings.monitor, math.nan)
            if not figures:
                position.best_epoch = position.epoch
            elif data.figures.improves(settings.monitor, monitored, position.best_value):
                position.best_epoch, position.best_value = position.epoch, monitored
                state.keep_best()
        if state.follows_metric:
            lower = data.figures.lower_is_better(settings.monitor)
            state.scheduler.step(monitored if lower else 1 - monitored)  # type: ignore[arg-type]
        done = EpochDone(
            epoch=position.epoch,
            step=position.step,
            loss=position.loss_sum / position.seen,
            accuracy=position.correct / position.seen,
            validation_loss=figures.get("loss"),
            validation_accuracy=figures.get("accuracy"),
            learning_rate=learning_rate,
            images_per_second=position.seen / position.seconds,
            seconds=position.seconds,
            validation_figures={
                name: value for name, value in figures.items() if name not in ("loss", "accuracy")
            },
        )
        position.total_seen += position.seen
        position.total_seconds += position.seconds
        position.batch = position.seen = position.correct = 0
        position.loss_sum = position.seconds = 0.0
        emit(done)  # before the checkpoint: a run that resumes there does not report it again
        state.save(folder / LAST, strategy)
        saved = time.monotonic()

    # ---- the best weights are the result
    best_epoch, file = position.best_epoch or position.epoch, LAST
    if state.best is not None:
        network.load_state_dict(state.best)
    elif state.average:
        state.average.copy_to_network()
    if best_epoch != position.epoch or state.average:
        file = BEST
        if strategy.is_main:
            checkpoint.save({"network": network.state_dict()}, folder / file)
    return FitResult(
        epochs=position.epoch,
        steps=position.step,
        best_epoch=best_epoch,
        file=file,
        stopped_early=out_of_patience() and position.epoch < settings.epochs,
        seconds=position.total_seconds,
        images_per_second=position.total_seen / position.total_seconds,
    )


def gradient_norms(network: nn.Module) -> dict[str, float]:
    """The Euclidean norm of the gradient of each layer's own parameters, by the layer's name."""
    squares: dict[str, torch.Tensor] = {}
    for name, weight in network.named_parameters():
        if weight.grad is not None:
            layer = name.rpartition(".")[0]
            squares[layer] = squares.get(layer, 0.0) + weight.grad.float().square().sum()
    return {layer: math.sqrt(float(square)) for layer, square in squares.items()}


def validate(state: TrainingState, data: TrainingData) -> dict[str, float]:
    """The figures of the network's predictions of the validation split."""
    split = data.validation
    assert split is not None
    predictions = predict(
        state.network, split.samples, split.labels, device=state.device, indices=split.indices
    )
    return data.figures(predictions)


def _check_weights(state: TrainingState, folder: Path) -> None:
    if not state.weights_are_finite:
        raise DivergedError(
            f"The weights became NaN or infinite by step {state.position.step}.{_last_good(folder)}"
        )


def _last_good(folder: Path) -> str:
    path = folder / LAST
    return f" The last good checkpoint is {path}." if path.exists() else ""
