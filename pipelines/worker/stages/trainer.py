"""One process's training: everything that the loop needs is built, then the loop runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torchyard.core.config.files import file_identity
from torchyard.core.config.resolve import ResolvedConfig, resolve_once
from torchyard.core.config.schema import TrainConfig
from torchyard.core.data.checkpoint_file import LAST
from torchyard.core.data.dataset import PreparedDataset, Split
from torchyard.core.data.files import atomic_write
from torchyard.core.errors import RunError, UserError
from torchyard.core.evaluation.figures import Figures
from torchyard.core.hosting.host import host
from torchyard.core.hosting.params import Loss, LossParams
from torchyard.core.training import checkpoint, loop
from torchyard.core.training import device as devices
from torchyard.core.training import network as networks
from torchyard.core.training.batches import (
    Batches,
    TrainingData,
    build_augmentation,
    total_steps,
    training_splits,
)
from torchyard.core.training.events import Emit, StageProgress, TrainingBatch, WeightsTaken
from torchyard.core.training.execution import CompiledStep, Execution, GraphedStep, WholeStep
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.prefixes import SharedEpochs, Snapshots, replayed
from torchyard.core.training.run_log import with_metrics_logged
from torchyard.core.training.sampling import sampling
from torchyard.core.training.state import TrainingState
from torchyard.pipelines.worker.checks.config_check import (
    UNKNOWN_BATCH_SIZE,
    Config,
    model_size,
    region_first,
    starting_weights,
    step_problems,
)
from torchyard.pipelines.worker.checks.trial_step import stand_ins
from torchyard.pipelines.worker.search.batch_size import with_found_batch_size
from torchyard.pipelines.worker.search.trial_training import begun_network
from torchyard.pipelines.worker.stages.branching import schedule_replay

BATCH_SHOWN = 36  # samples in the picture of a training batch

Answers = Iterator[bool]


def train_process(
    arguments: tuple[Config, str, str, str | None],
    emit: Emit,
    strategy: Strategy,
    device: torch.device,
    answers: Answers | None = None,
    shared: SharedEpochs | None = None,
) -> dict[str, Any]:
    """Train as one process of the strategy; returns what `train` does."""
    config, folder = arguments[0], Path(arguments[2])
    resolved, prepared = resolve_once(config, host()), PreparedDataset.open(Path(arguments[1]))
    settings = resolved.config.train
    devices.set_deterministic(settings.deterministic)
    found = checkpoint.find(folder) if strategy.is_main else None
    start = None
    begins = strategy.broadcast(found is None)  # a checkpoint has the weights
    if begins and (strategy.is_main or settings.nodes == 1):
        start = starting_weights(resolved, arguments[3])
    train, validation = training_splits(prepared, resolved.config, folder)
    if settings.batch_size == "auto":
        _check_step(resolved.with_batch_size(UNKNOWN_BATCH_SIZE), prepared, train, start)
        emit(StageProgress("finding the batch size", 0, 0))
        resolved = with_found_batch_size(resolved, prepared, train, device, folder, start)
        settings = resolved.config.train
    size, groups = model_size(resolved, prepared.spec, start)
    checkpoint.seed_everything(settings.drawn_seed)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    network, freezing, taken = begun_network(resolved, prepared, device, start)
    if settings.nodes > 1:  # the others need not have the weights, nor draw the same
        network.load_state_dict(strategy.broadcast(network.state_dict()))
    if settings.sync_batch_norm:
        from torchyard.core.training.parallel.batch_norm import synchronize

        synchronize(network.model, device)
    if start is not None and strategy.is_main:
        emit(WeightsTaken(taken, file_identity(start.file)))
    steps = total_steps(len(train), settings)
    execution = Execution.choose(
        resolved.config, network.model, size, steps, device, resolved.optimizer.needs_closure
    )
    execution.apply(network)
    if problems := step_problems(resolved, prepared.spec, size, groups, steps, prepared):
        raise UserError(problems)
    region, changes = region_first(resolved.augmentations, prepared)
    classes = len(prepared.classes)
    augmentations = [build_augmentation(plugin, prepared.shape, classes) for plugin in changes]
    fitted = resolved.loss.with_class_counts(train.class_counts(classes))
    loss = fitted.build(classes)
    parameters = dict(network.model.named_parameters())
    optimizer = networks.build_optimizer(resolved.optimizer, parameters, groups)
    scheduler = resolved.scheduler.build(optimizer, steps)
    if isinstance(loss, nn.Module):
        loss = loss.to(device)
    on_device = not prepared.encoded and devices.fits_on(train.samples.nbytes, device)
    data = TrainingData(
        train,
        validation,
        augmentations,
        device if on_device else torch.device("cpu"),
        Figures.build(resolved.named_metrics, prepared.classes),
        region.region if region else None,
    )
    if strategy.rank:  # all begin with the same weights, but each draws its own dropout
        checkpoint.seed_everything((settings.drawn_seed + strategy.rank) % 2**32)
    if strategy.is_main and len(prepared.shape) == 3:
        _show_batch(Batches(data, settings, device), folder, emit)
    state = TrainingState(
        network,
        optimizer,
        scheduler,
        device=device,
        precision=execution.precision,
        follows_metric=resolved.scheduler.follows_metric,
        needs_closure=resolved.optimizer.needs_closure,
        freezing=freezing,
        ema=settings.ema,
    )
    whole, refusal = None, "false"
    if execution.compiled:
        emit(StageProgress("compiling", 0, 0))
        whole, refusal = _whole_step(state, loss, data, settings)
    emit = with_metrics_logged(folder, emit) if strategy.is_main else emit
    answers = answers or itertools.repeat(True)
    go_on = itertools.chain([True], answers)  # before the first epoch
    fitted_to = (state, loss, data, settings, strategy, whole, folder, emit)
    shared_steps = 0
    if shared is None:
        result = loop.fit(*fitted_to, go_on.__next__)
    else:
        replay = schedule_replay(resolved, stand_ins(parameters), groups, steps)
        with Snapshots(shared, f"{execution}; {device}; {torch.__version__}", replay) as snapshots:
            if found is None and (events := snapshots.begin(state, strategy)):
                if not replayed(events, emit, answers.__next__):
                    return {}
                state.save(folder / LAST, strategy)
                shared_steps = state.position.step

            def goes_on() -> bool:
                snapshots.keep(state, folder)
                return next(go_on)

            result = loop.fit(*fitted_to, goes_on)
            snapshots.keep(state, folder)
    return {
        "shared_steps": shared_steps,
        "weights": str(folder / result.file),
        "weights_digest": networks.weights_digest(network),
        "parameters": size.parameters,
        "fit": asdict(result),
        "placement": devices.describe_device(device)
        | {
            "model_device": str(next(network.model.parameters()).device),
            "normalization_device": str(
                next((each.device for each in network.normalize.buffers()), device)
            ),
            "data_device": str(data.device),
            "precision": execution.precision,
            "execution": str(execution),
            "compiled": str(whole or refusal),
            "processes": str(strategy.world_size),
            "batch_size": str(settings.known_batch_size),
        },
        "balance": _balance(resolved, fitted, train),
        "peaks": devices.peak_memory(device),
    }


def _check_step(
    resolved: ResolvedConfig,
    prepared: PreparedDataset,
    train: Split,
    start: networks.StartingWeights | None,
) -> None:
    """Try a training step of two samples.

    Raises:
        UserError: it fails.
    """
    steps = total_steps(len(train), resolved.config.train)
    size, groups = model_size(resolved, prepared.spec, start)
    if problems := step_problems(resolved, prepared.spec, size, groups, steps, prepared):
        raise UserError(problems)


def _show_batch(batches: Batches, folder: Path, emit: Emit) -> None:
    """Keep the first samples as the network gets them, for a picture of a training batch."""
    file = folder / "training_batch.npz"
    samples, _, labels = batches.first(BATCH_SHOWN)
    with atomic_write(file) as writer:
        np.savez(writer, samples=samples.cpu().numpy(), labels=labels.cpu().numpy())
    emit(TrainingBatch(str(file)))


def _balance(resolved: ResolvedConfig, fitted: LossParams, train: Split) -> dict[str, str]:
    """What was done about classes that differ in frequency, in words, and the loss's numbers."""
    given, notes, filled_in = resolved.loss.model_dump(), [], []
    for name, value in fitted.model_dump().items():
        if value == given[name]:
            continue
        if isinstance(value, tuple) and all(isinstance(each, int | float) for each in value):
            span = f"{min(value):.3g} to {max(value):.3g}"
            notes.append(f"loss.{name}={given[name]}: classes weighted {span}")
            value = f"[{','.join(f'{number:.5g}' for number in value)}]"
        filled_in.append(f"loss.{name}={value}")
    if drawn := sampling(train, resolved.config.train.sampler):
        notes.append(drawn)
    found = {"balance": "; ".join(notes), "loss_filled_in": " ".join(filled_in)}
    return {tag: text for tag, text in found.items() if text}


def _whole_step(
    state: TrainingState, loss: Loss, data: TrainingData, settings: TrainConfig
) -> tuple[WholeStep | None, str]:
    """Compile the step of a whole batch; returns it, or why that failed.

    Raises:
        RunError: it cannot be compiled, and `train.compile` asks for it.
    """
    if state.device.type == "cuda":
        return (
            GraphedStep(
                state.network, loss, state.optimizer, state.precision,
                clip_norm=settings.clip_norm, required=bool(settings.compile),
            ),
            "",
        )  # fmt: skip
    batch = Batches(data, settings, state.device).first(settings.known_batch_size)
    gradients_used = settings.clip_norm is not None or settings.log_gradients
    try:
        step = CompiledStep(
            state.network, loss, state.optimizer, *batch, gradients_used=gradients_used
        )
    except RunError as error:
        if settings.compile:
            raise
        return None, f"false: {error}"
    return step, ""
