"""`fit()`: the training loop, top to bottom.

Samples stay as they are stored (uint8), on the device where they fit; the network's first
layer normalizes. Losses stay on the device and are read at log points only, because every
read makes the CPU wait for the GPU. What happens is reported through `emit`; nothing here
knows of progress bars, MLflow or Prefect.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from torchyard.core.config.schema import TrainConfig
from torchyard.core.data.dataset import Split, rows_on
from torchyard.core.errors import RunError
from torchyard.core.evaluation.predict import predict
from torchyard.core.hosting.params import Augmentation, Loss
from torchyard.core.training import checkpoint
from torchyard.core.training.events import EpochDone, Event, GradientNorms, Progress, RunningLoss
from torchyard.core.training.execution import CompiledStep
from torchyard.core.training.state import TrainingState
from torchyard.core.training.strategy import Strategy

CHECKPOINT_SECONDS = 30.0  # between checkpoints within an epoch; checked at log points
PROGRESS_SECONDS = 0.25


@dataclass(frozen=True)
class TrainingData:
    """What a network is trained on.

    Attributes:
        train: the samples to learn from.
        validation: held-out samples; the epoch with their lowest loss is kept.
        augmentations: applied to every training batch, in this order.
        device: where the samples live: the network's, or the CPU where they do not fit.
    """

    train: Split
    validation: Split | None
    augmentations: Sequence[Augmentation]
    device: torch.device


@dataclass(frozen=True)
class FitResult:
    """How training ended. The network holds the best weights where there was a validation.

    Attributes:
        epochs: epochs finished; steps: batches trained.
        best_epoch: the epoch whose weights were kept.
        stopped_early: whether patience ran out.
        seconds: time in training steps.
        images_per_second: samples trained on in that time.
    """

    epochs: int
    steps: int
    best_epoch: int
    stopped_early: bool
    seconds: float
    images_per_second: float


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Batches per epoch. A last batch of one sample is left out: batch norm has no variance."""
    full, rest = divmod(samples, batch_size)
    return max(1, full + (1 if rest > 1 or (rest == 1 and batch_size == 1) else 0))


def total_steps(samples: int, settings: TrainConfig) -> int:
    """Batches of a whole run."""
    steps = steps_per_epoch(samples, settings.batch_size) * settings.epochs
    return min(steps, settings.max_steps or steps)


def epoch_order(samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of the samples in an epoch: a function of seed and epoch alone.

    So a resumed run continues within it without replaying the generator.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(samples, generator=generator)


def fit(
    state: TrainingState,
    loss_function: Loss,
    data: TrainingData,
    settings: TrainConfig,
    strategy: Strategy,
    compiled: CompiledStep | None,
    folder: Path,
    emit: Callable[[Event], None],
) -> FitResult:
    """Train the state's network in place, from the folder's last checkpoint if it has one.

    Args:
        state: what is trained.
        loss_function: (logits, targets) to a scalar.
        data: what it is trained on.
        settings: epochs, batch size and the rest.
        strategy: the processes that train together; each calls `fit` with the same arguments.
        compiled: does the step of the batches it takes; in float32, in a single process.
        folder: for the checkpoints `last.pt` and `previous.pt`, and the best weights, `best.pt`.
        emit: called with progress, running losses and finished epochs.

    Raises:
        RunError: the loss became NaN or infinite (the last good checkpoint stays), or a
            checkpoint cannot be written or read.
    """
    # ---- data: the memory map or its file on the CPU, copied once to a GPU
    train, validation, device = data.train, data.validation, state.device
    samples = rows_on(train.samples, data.device)
    labels = torch.from_numpy(train.labels).to(data.device)
    batch_size = settings.batch_size
    batches = steps_per_epoch(len(train), batch_size)
    last_step = total_steps(len(train), settings)

    # ---- where to start
    found = checkpoint.find(folder) if strategy.is_main else None
    if (last := strategy.broadcast(found)) is not None:
        state.load(last, strategy)
    position, patience = state.position, settings.patience
    network, optimizer, scaler = state.network, state.optimizer, state.scaler
    forward = strategy.wrap(network)

    def out_of_patience() -> bool:
        return patience is not None and position.epoch - position.best_epoch >= patience

    # ---- the loop
    autocast = torch.autocast(
        device.type, dtype=getattr(torch, state.precision), enabled=state.precision != "float32"
    )
    losses = torch.zeros(settings.log_every, device=device)
    sizes = torch.zeros(settings.log_every, dtype=torch.float64)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    saved = time.monotonic()

    while position.epoch < settings.epochs and position.step < last_step and not out_of_patience():
        network.train()
        order = epoch_order(len(train), settings.drawn_seed, position.epoch)
        if train.indices is not None:
            order = torch.from_numpy(train.indices)[order]
        order = order.to(data.device)
        # A run that ends within an epoch finishes that epoch: its metrics are reported.
        epoch_end = min(batches, position.batch + last_step - position.step)
        pending = 0  # batches whose loss has not been read yet
        clock = reported = time.perf_counter()
        reported_step = position.step

        while position.batch < epoch_end:
            batch = order[position.batch * batch_size : (position.batch + 1) * batch_size]
            index, weight = strategy.shard(batch)
            inputs = samples.index_select(0, index).to(device, non_blocking=True)
            targets = labels.index_select(0, index).to(device, non_blocking=True)
            for augment in data.augmentations:
                inputs = augment(inputs, index.to(device), position.epoch + 1)
            learning_rate = optimizer.param_groups[0]["lr"]
            updated = False
            if compiled is not None and compiled.accepts(inputs):
                loss, right = compiled(inputs, targets)
                updated = compiled.updates
            else:
                with autocast:
                    logits = forward(inputs)
                    loss = loss_function(logits, targets)
                if weight != 1:
                    loss = loss * weight
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                right = (logits.detach().argmax(1) == targets).sum()
            if not updated:
                if settings.clip_norm is not None:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
                scaler.step(optimizer)
                scaler.update()
            state.scheduler.step()

            losses[pending] = loss.detach()
            sizes[pending] = len(batch)
            if weight:
                correct += right
            pending += 1
            position.batch += 1
            position.step += 1

            now = time.perf_counter()
            if now - reported >= PROGRESS_SECONDS:
                rate = (position.step - reported_step) * batch_size / (now - reported)
                emit(Progress(position.epoch + 1, position.step, last_step, rate))
                reported, reported_step = now, position.step

            # -- log point: the only place where the CPU waits for the device
            if position.step % settings.log_every == 0 or position.batch == epoch_end:
                values = strategy.all_reduce_mean(losses[:pending]).cpu().double()
                if not values.isfinite().all():
                    first = int((~values.isfinite()).nonzero()[0])
                    raise RunError(
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
                    state.save(folder / checkpoint.LAST, strategy)
                    saved = time.monotonic()

        # ---- the epoch's end: validate, keep the best, report
        _check_weights(state, folder)
        validation_loss = validation_accuracy = None
        if validation is not None:
            # The main process alone predicts; the others wait for it.
            result = validate(state, validation) if strategy.is_main else (math.inf, 0.0)
            validation_loss, validation_accuracy = strategy.broadcast(result)
        position.epoch += 1
        done = EpochDone(
            epoch=position.epoch,
            step=position.step,
            loss=position.loss_sum / position.seen,
            accuracy=position.correct / position.seen,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=learning_rate,
            images_per_second=position.seen / position.seconds,
            seconds=position.seconds,
        )
        position.total_seen += position.seen
        position.total_seconds += position.seconds
        position.batch = position.seen = position.correct = 0
        position.loss_sum = position.seconds = 0.0
        if validation_loss is None:
            position.best_epoch = position.epoch
        elif validation_loss < position.best_loss:
            position.best_epoch, position.best_loss = position.epoch, validation_loss
            state.keep_best()
        emit(done)  # before the checkpoint: a run that resumes there does not report it again
        state.save(folder / checkpoint.LAST, strategy)
        saved = time.monotonic()

    # ---- the best weights are the result
    if state.best is not None and position.best_epoch != position.epoch:
        network.load_state_dict(state.best)
        if strategy.is_main:
            checkpoint.save({"network": state.best}, folder / checkpoint.BEST)
    return FitResult(
        epochs=position.epoch,
        steps=position.step,
        best_epoch=position.best_epoch or position.epoch,
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


def validate(state: TrainingState, split: Split) -> tuple[float, float]:
    """Mean cross-entropy and accuracy (0 to 1) of the network on a split."""
    predictions = predict(
        state.network, split.samples, split.labels, device=state.device, indices=split.indices
    )
    logits = torch.from_numpy(predictions.logits)
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(predictions.targets)).item()
    return loss, float((predictions.predicted == predictions.targets).mean())


def _check_weights(state: TrainingState, folder: Path) -> None:
    if not state.weights_are_finite:
        raise RunError(
            f"The weights became NaN or infinite by step {state.position.step}.{_last_good(folder)}"
        )


def _last_good(folder: Path) -> str:
    path = folder / checkpoint.LAST
    return f" The last good checkpoint is {path}." if path.exists() else ""
