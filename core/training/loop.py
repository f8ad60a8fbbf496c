"""`fit()`: the training loop, top to bottom.

Samples stay as they are stored (uint8), on the device where they fit; the network's first
layer normalizes. Losses stay on the device and are read at log points only, because every
read makes the CPU wait for the GPU. What happens is told through `emit`; nothing here
knows of progress bars, MLflow or Prefect.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchyard.core.config.schema import TrainConfig
from torchyard.core.data.dataset import Split, rows_on
from torchyard.core.errors import RunError
from torchyard.core.evaluation import predict
from torchyard.core.hosting.params import Augmentation, Loss
from torchyard.core.training import checkpoint
from torchyard.core.training.distributed import ALONE, Team
from torchyard.core.training.events import EpochDone, Event, GradientNorms, Progress, RunningLoss
from torchyard.core.training.execution.compilation import CompiledStep

CHECKPOINT_SECONDS = 30.0  # at most so much work is lost by a crash
PROGRESS_SECONDS = 0.25


@dataclass
class Position:
    """How far training has come: what a checkpoint holds beside the weights.

    Attributes:
        epoch: epochs finished.
        batch: batches finished in the epoch under way.
        step: batches finished in all.
        loss_sum, correct, seen: sums over the samples of the epoch under way.
        seconds: training time of the epoch under way.
        total_seconds, total_seen: of the epochs finished.
        best_loss: the lowest validation loss so far, after `best_epoch` epochs.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0
    total_seconds: float = 0.0
    total_seen: int = 0
    best_loss: float = math.inf
    best_epoch: int = 0


@dataclass(frozen=True)
class FitResult:
    """How training ended. The network holds the best weights where there was a validation.

    Attributes:
        epochs: epochs begun; steps: batches trained.
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
    """Batches an epoch. A last batch of one sample is left out: batch norm has no variance."""
    full, rest = divmod(samples, batch_size)
    return max(1, full + (1 if rest > 1 or (rest == 1 and batch_size == 1) else 0))


def total_steps(samples: int, settings: TrainConfig) -> int:
    """Batches of a whole run."""
    steps = steps_per_epoch(samples, settings.batch_size) * settings.epochs
    return min(steps, settings.max_steps or steps)


def epoch_order(samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of the samples in an epoch: a function of seed and epoch alone.

    So a resumed run finds its place without replaying the generator.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(samples, generator=generator)


def fit(
    network: nn.Module,
    loss_function: Loss,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    train: Split,
    validation: Split | None,
    settings: TrainConfig,
    *,
    device: torch.device,
    data_device: torch.device,
    precision: str,
    folder: Path,
    emit: Callable[[Event], None],
    augmentations: Sequence[Augmentation] = (),
    compiled: CompiledStep | None = None,
    team: Team = ALONE,
) -> FitResult:
    """Train the network in place, checkpointing into `folder`; continue if one is there.

    Args:
        network: on `device`, raw samples to logits.
        loss_function: (logits, targets) to a scalar.
        optimizer: of the network's parameters.
        scheduler: stepped after every batch.
        train: the samples to learn from.
        validation: held-out samples; the epoch with their lowest loss is kept.
        settings: epochs, batch size and the rest.
        device: where the training runs.
        data_device: where the samples live: `device`, or the CPU where they do not fit.
        precision: "float32", or the type of the forward pass under autocast.
        folder: for `last.pt` and `best.pt`.
        emit: told of progress, running losses and finished epochs.
        augmentations: applied to every training batch, in this order.
        compiled: does the step of the batches it takes; in float32, without a team.
        team: the processes that train together; each calls `fit` with the same arguments.

    Raises:
        RunError: the loss became NaN or infinite (the last good checkpoint stays), or a
            checkpoint cannot be written or read.
    """
    # ---- data: the memory map or its file on the CPU, copied once to a GPU
    samples = rows_on(train.samples, data_device)
    labels = torch.from_numpy(train.labels).to(data_device)
    batch_size = settings.batch_size
    batches = steps_per_epoch(len(train), batch_size)
    last_step = total_steps(len(train), settings)
    forward = team.wrapped(network)

    # ---- where to begin
    at = Position()
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    state_of: dict[str, Any] = {
        "network": network,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "scaler": scaler,
    }

    def check_weights() -> None:
        if not all(weight.isfinite().all() for weight in network.parameters()):
            raise RunError(f"The weights became NaN or infinite by step {at.step}.{_kept(folder)}")

    def save(name: str) -> None:
        check_weights()
        state: dict[str, Any] = {key: thing.state_dict() for key, thing in state_of.items()}
        # Every process draws from its own generators.
        random = team.gathered(checkpoint.random_state(device))
        state |= {"position": asdict(at), "random": random}
        if team.leads:
            checkpoint.save(state, folder / name)

    if (folder / checkpoint.LAST).exists():
        state = checkpoint.load(folder / checkpoint.LAST)
        for key, thing in state_of.items():
            thing.load_state_dict(state[key])
        if team.rank < len(state["random"]):
            checkpoint.restore_random_state(state["random"][team.rank], device)
        at = Position(**state["position"])

    def out_of_patience() -> bool:
        return settings.patience is not None and at.epoch - at.best_epoch >= settings.patience

    # ---- the loop
    autocast = torch.autocast(
        device.type, dtype=getattr(torch, precision), enabled=precision != "float32"
    )
    losses = torch.zeros(settings.log_every, device=device)
    sizes = torch.zeros(settings.log_every, dtype=torch.float64)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    saved = time.monotonic()

    while at.epoch < settings.epochs and at.step < last_step and not out_of_patience():
        network.train()
        order = epoch_order(len(train), settings.seed, at.epoch)
        if train.indices is not None:
            order = torch.from_numpy(train.indices)[order]
        order = order.to(data_device)
        # A run that ends within an epoch ends that epoch: its figures are reported.
        epoch_end = min(batches, at.batch + last_step - at.step)
        pending = 0  # batches whose loss has not been read yet
        clock = reported = time.perf_counter()
        reported_step = at.step

        while at.batch < epoch_end:
            batch = order[at.batch * batch_size : (at.batch + 1) * batch_size]
            index, weight = team.share(batch)
            inputs = samples.index_select(0, index).to(device, non_blocking=True)
            targets = labels.index_select(0, index).to(device, non_blocking=True)
            for augment in augmentations:
                inputs = augment(inputs, index.to(device), at.epoch + 1)
            learning_rate = optimizer.param_groups[0]["lr"]
            updated = False
            if compiled is not None and compiled.takes(inputs):
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
            scheduler.step()

            losses[pending] = loss.detach()
            sizes[pending] = len(batch)
            if weight:
                correct += right
            pending += 1
            at.batch += 1
            at.step += 1

            now = time.perf_counter()
            if now - reported >= PROGRESS_SECONDS:
                rate = (at.step - reported_step) * batch_size / (now - reported)
                emit(Progress(at.epoch + 1, at.step, last_step, rate))
                reported, reported_step = now, at.step

            # -- log point: the only place where the CPU waits for the device
            if at.step % settings.log_every == 0 or at.batch == epoch_end:
                values = team.mean(losses[:pending]).cpu().double()
                if not values.isfinite().all():
                    first = int((~values.isfinite()).nonzero()[0])
                    raise RunError(
                        f"The loss became {values[first].item()} in epoch {at.epoch + 1} at step "
                        f"{at.step - pending + first + 1}; a lower optimizer.lr or a "
                        f"train.clip_norm may help.{_kept(folder)}"
                    )
                at.loss_sum += float(values @ sizes[:pending])
                at.seen += int(sizes[:pending].sum())
                at.correct += int(team.total(correct))
                correct.zero_()
                at.seconds += time.perf_counter() - clock
                clock, pending = time.perf_counter(), 0
                emit(RunningLoss(at.step, values.mean().item()))
                if settings.log_gradients:
                    emit(GradientNorms(at.step, gradient_norms(network)))
                due = team.leaders(time.monotonic() - saved > CHECKPOINT_SECONDS)
                if due and at.batch < epoch_end:
                    save(checkpoint.LAST)
                    saved = time.monotonic()

        # ---- the epoch's end: validate, keep the best, report
        check_weights()
        validation_loss = validation_accuracy = None
        if validation is not None:
            found = _validate(network, validation, device) if team.leads else (math.inf, 0.0)
            validation_loss, validation_accuracy = team.leaders(found)
        at.epoch += 1
        done = EpochDone(
            epoch=at.epoch,
            step=at.step,
            loss=at.loss_sum / at.seen,
            accuracy=at.correct / at.seen,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=learning_rate,
            images_per_second=at.seen / at.seconds,
            seconds=at.seconds,
        )
        at.total_seen += at.seen
        at.total_seconds += at.seconds
        at.batch = at.seen = at.correct = 0
        at.loss_sum = at.seconds = 0.0
        if validation_loss is None:
            at.best_epoch = at.epoch
        elif validation_loss < at.best_loss:
            at.best_epoch, at.best_loss = at.epoch, validation_loss
            save(checkpoint.BEST)
        emit(done)  # before the checkpoint: a run that goes on from there does not tell it again
        save(checkpoint.LAST)
        saved = time.monotonic()

    # ---- the best weights are the result
    if validation is not None and at.best_epoch != at.epoch:
        network.load_state_dict(checkpoint.load(folder / checkpoint.BEST)["network"])
    return FitResult(
        epochs=at.epoch,
        steps=at.step,
        best_epoch=at.best_epoch,
        stopped_early=out_of_patience() and at.epoch < settings.epochs,
        seconds=at.total_seconds,
        images_per_second=at.total_seen / at.total_seconds,
    )


def gradient_norms(network: nn.Module) -> dict[str, float]:
    """The Euclidean norm of the gradient of each layer's own parameters, by the layer's name."""
    squares: dict[str, torch.Tensor] = {}
    for name, weight in network.named_parameters():
        if weight.grad is not None:
            layer = name.rpartition(".")[0]
            squares[layer] = squares.get(layer, 0.0) + weight.grad.float().square().sum()
    return {layer: math.sqrt(float(square)) for layer, square in squares.items()}


def _validate(network: nn.Module, split: Split, device: torch.device) -> tuple[float, float]:
    predictions = predict.predict(
        network, split.samples, split.labels, device=device, indices=split.indices
    )
    logits = torch.from_numpy(predictions.logits)
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(predictions.targets)).item()
    return loss, float((predictions.predicted == predictions.targets).mean())


def _kept(folder: Path) -> str:
    path = folder / checkpoint.LAST
    return f" The last good checkpoint is {path}." if path.exists() else ""
