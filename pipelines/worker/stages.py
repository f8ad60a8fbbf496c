"""The work of each stage, done in the worker process: paths and plain values in and out."""

from __future__ import annotations

import io
import itertools
import logging
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import nn

from torchyard.core.audit import audit
from torchyard.core.audit.exclusion import audit_figures, found_audit
from torchyard.core.config.files import file_identity
from torchyard.core.config.resolve import ResolvedConfig, resolve_once
from torchyard.core.config.schema import TrainConfig
from torchyard.core.data.dataset import PreparedDataset, Split
from torchyard.core.data.files import atomic_write
from torchyard.core.errors import RunError, UserError
from torchyard.core.evaluation.conformal import CONFIDENCE_FILE, Confidence
from torchyard.core.evaluation.figures import Figures
from torchyard.core.evaluation.nearest import nearest_training_samples
from torchyard.core.evaluation.predict import predict
from torchyard.core.evaluation.views import Views
from torchyard.core.hosting.host import host
from torchyard.core.hosting.params import Loss, LossParams
from torchyard.core.preparation.prepare import find_prepared, prepare_dataset
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
from torchyard.core.training.execution import (
    CompiledStep,
    Execution,
    GraphedStep,
    WholeStep,
    set_up_evaluation,
)
from torchyard.core.training.parallel.strategy import DataParallel, Strategy
from torchyard.core.training.prefixes import SharedEpochs, Snapshots, replayed
from torchyard.core.training.run_log import with_metrics_logged
from torchyard.core.training.sampling import sampling
from torchyard.core.training.state import TrainingState
from torchyard.pipelines.worker.branching import find_branches, schedule_replay
from torchyard.pipelines.worker.checks.config_check import (
    UNKNOWN_BATCH_SIZE,
    Config,
    check,
    misfits,
    model_size,
    region_first,
    starting_weights,
    step_problems,
)
from torchyard.pipelines.worker.checks.plugin_check import try_plugins
from torchyard.pipelines.worker.checks.trial_step import stand_ins
from torchyard.pipelines.worker.extension import extend
from torchyard.pipelines.worker.judging import judge
from torchyard.pipelines.worker.label_judging import judge_labels
from torchyard.pipelines.worker.search.batch_size import (
    find_batch_size,
    with_found_batch_size,
)
from torchyard.pipelines.worker.search.learning_rate import range_test, suggested_rate
from torchyard.pipelines.worker.search.trial_training import begun_network, new_network
from torchyard.pipelines.worker.summaries import inspect_dataset, inspect_model

if TYPE_CHECKING:
    from torchyard.core.training.parallel.nodes import Nodes

logger = logging.getLogger(__name__)

BATCH_SHOWN = 36  # samples in the picture of a training batch
TRAINER_SECONDS = 20.0  # how long to wait for one that ends
NEAREST_SECONDS = 1.0  # at least, to look for training images that explain mistakes

Answers = Iterator[bool]


def prepare(config: Config, cache: str, emit: Emit) -> dict[str, Any]:
    """Find or make the prepared arrays, and audit them where the configuration asks for it.

    Returns:
        folder: where they are; found: whether they were there already.

    Raises:
        UserError: the data are wrong, or lack a validation split that is needed.
    """
    resolved = resolve_once(config, host())
    chosen, folder = resolved.config.dataset, Path(cache)
    before = find_prepared(chosen.name, resolved.dataset, folder, chosen.reading)
    prepared = prepare_dataset(
        chosen.name,
        resolved.dataset,
        folder,
        lambda *step: emit(StageProgress(*step)),
        chosen.reading,
    )
    resolved.config.check_validation(prepared.validation is not None)
    if problems := misfits(resolved, prepared):
        raise UserError(problems)
    if resolved.audited:
        audit.audit(prepared, lambda *step: emit(StageProgress(*step)))
    return {"folder": str(prepared.folder), "found": prepared == before}


def audit_dataset(data: str, again: bool, emit: Emit) -> dict[str, Any]:
    """Audit prepared data; the table is `AUDIT_FILE` in their folder.

    Args:
        again: also where there is a table.

    Returns:
        seconds: how long it took.
    """
    began = time.perf_counter()
    prepared = PreparedDataset.open(Path(data))
    audit.audit(prepared, lambda *step: emit(StageProgress(*step)), again)
    return {"seconds": time.perf_counter() - began}


def train(
    config: Config,
    data: str,
    folder: str,
    emit: Emit,
    weights: str | None = None,
    answers: Answers | None = None,
    shared: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train into `folder`, from its last checkpoint if it has one.

    Args:
        weights: the file with those of a run that `model.weights` names.
        answers: whether to go on after an epoch, from whoever was told of it; in one process.
        shared: what other trainings have in common with this one, as `SharedEpochs.parse` takes
            it; in one process.

    Returns:
        Nothing where a training that is shared was not to go on before this one parts from it.
        weights: the checkpoint to use; fit: how training ended; placement: the devices
        used; balance: what was done about classes of other frequencies; peaks: memory;
        weights_digest: sha256 of the weights; parameters: how many.
    """
    resolved = resolve_once(config, host())
    settings = resolved.config.train
    device = devices.choose_device(resolved.config.device)
    arguments = (config, data, folder, weights)
    with _only_trainer(Path(folder)):
        if settings.parallel == "ddp":
            from torchyard.core.training.parallel.launcher import launch

            nodes = _other_hosts(settings, arguments, device, emit) if settings.nodes > 1 else None
            return launch(_train, arguments, settings, device, emit, nodes)
        strategy = DataParallel() if settings.parallel == "data_parallel" else Strategy()
        return _train(arguments, emit, strategy, device, answers, SharedEpochs.parse(shared))


def _other_hosts(
    settings: TrainConfig,
    arguments: tuple[Config, str, str, str | None],
    device: torch.device,
    emit: Emit,
) -> Nodes:
    """Tell the other hosts what is trained, and wait until they can begin."""
    from torchyard.core.training.parallel.nodes import Nodes

    config, data, *_ = arguments
    about = {
        "config": config,
        "data": PreparedDataset.open(Path(data)).digest,
        "device": device.type,
        "versions": _versions(),
    }
    assert settings.rendezvous is not None
    nodes = Nodes.serve(settings.rendezvous, about)
    logger.info("waiting for other hosts: torchyard join %s", settings.rendezvous)
    nodes.wait_for_others(
        settings.nodes,
        settings.join_timeout,
        lambda there, count: emit(StageProgress("hosts", there, count)),
    )
    return nodes


def join(address: str, timeout: float, cache: str, emit: Emit) -> dict[str, Any]:
    """Take part, as another host than the first, in the training that is to be had at an address.

    Args:
        address: HOST:PORT, `train.rendezvous` of the first host.
        timeout: seconds to wait for it.

    Raises:
        UserError: it does not answer, or this host cannot train what it does.
        RunError: the training failed.
    """
    from torchyard.core.training.parallel.launcher import launch
    from torchyard.core.training.parallel.nodes import Nodes

    nodes, about = Nodes.join(address, timeout)
    try:
        if (versions := _versions()) != about["versions"]:
            raise UserError(
                f"the first host has other versions: {_listed(about['versions'])} there, "
                f"{_listed(versions)} here"
            )
        resolved = resolve_once(about["config"], host())
        if changed := [line for line in resolved.changed if not line.startswith("model.weights")]:
            raise UserError(changed)
        data = prepare(about["config"], cache, emit)["folder"]
        digest = PreparedDataset.open(Path(data)).digest
        if digest != about["data"]:
            raise UserError(
                f"dataset: the samples here are not those of the first host: {digest[:16]} here, "
                f"{about['data'][:16]} there"
            )
        device = devices.choose_device(resolved.config.device)
        if device.type != about["device"]:
            raise UserError(f"device: {device.type} here, {about['device']} on the first host")
    except UserError as error:
        nodes.refuse(f"{socket.gethostname()}: {error}")
        raise
    nodes.ready()
    emit(StageProgress("training", 0, 0))
    with tempfile.TemporaryDirectory() as folder:
        arguments = (about["config"], data, folder, None)
        launch(_train, arguments, resolved.config.train, device, emit, nodes)
    return {}


def _versions() -> dict[str, str]:
    """What decides whether two hosts compute the same."""
    return {"torchyard": version("torchyard"), "torch": str(torch.__version__)}


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


@contextmanager
def _only_trainer(folder: Path) -> Iterator[None]:
    """Keep any other process from training in the folder.

    Raises:
        RunError: one trains there, such as a worker process that outlives its killed parent.
    """
    try:
        with FileLock(folder / "training.lock", timeout=TRAINER_SECONDS):
            yield
    except Timeout:
        raise RunError(f"another process trains in {folder}: nothing was changed.") from None


def _train(
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
        some = resolved.with_batch_size(UNKNOWN_BATCH_SIZE)
        steps = total_steps(len(train), some.config.train)
        size, groups = model_size(some, prepared.spec, start)
        if problems := step_problems(some, prepared.spec, size, groups, steps, prepared):
            raise UserError(problems)
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
        file = folder / "training_batch.npz"
        samples, _, labels = Batches(data, settings, device).first(BATCH_SHOWN)
        with atomic_write(file) as writer:
            np.savez(writer, samples=samples.cpu().numpy(), labels=labels.cpu().numpy())
        emit(TrainingBatch(str(file)))
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
    told = answers or itertools.repeat(True)
    go_on = itertools.chain([True], told)  # before the first epoch
    fitted_to = (state, loss, data, settings, strategy, whole, folder, emit)
    shared_steps = 0
    if shared is None:
        result = loop.fit(*fitted_to, go_on.__next__)
    else:
        replay = schedule_replay(resolved, stand_ins(parameters), groups, steps)
        with Snapshots(shared, f"{execution}; {device}; {torch.__version__}", replay) as snapshots:
            if found is None and (events := snapshots.begin(state, strategy)):
                if not replayed(events, emit, told.__next__):
                    return {}
                state.save(folder / checkpoint.LAST, strategy)
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


def _balance(resolved: ResolvedConfig, fitted: LossParams, train: Split) -> dict[str, str]:
    """What was done about classes that differ in frequency, in words, and the loss's numbers."""
    given, told, filled_in = resolved.loss.model_dump(), [], []
    for name, value in fitted.model_dump().items():
        if value == given[name]:
            continue
        if isinstance(value, tuple) and all(isinstance(each, int | float) for each in value):
            span = f"{min(value):.3g} to {max(value):.3g}"
            told.append(f"loss.{name}={given[name]}: classes weighted {span}")
            value = f"[{','.join(f'{number:.5g}' for number in value)}]"
        filled_in.append(f"loss.{name}={value}")
    if drawn := sampling(train, resolved.config.train.sampler):
        told.append(drawn)
    found = {"balance": "; ".join(told), "loss_filled_in": " ".join(filled_in)}
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


def evaluate(
    config: Config, data: str, weights: str, target: str, emit: Emit, nearest: str | None = None
) -> dict[str, Any]:
    """Predict the test split with trained weights; the predictions go to the file `target`.

    With a validation split, what it says of the probabilities goes to a file beside that.

    Args:
        nearest: the file for the training images nearest to the surest mistakes. To look for them
            takes as long as the test, or a second.

    Returns:
        figures: of the predictions, where they are defined.
    """
    resolved, prepared = resolve_once(config, host()), PreparedDataset.open(Path(data))
    device = devices.choose_device(resolved.config.device)
    set_up_evaluation(resolved.config.train.threads)
    network = trained_network(resolved, prepared, Path(weights), device)
    test, began = prepared.test, time.perf_counter()
    predictions = predict(network, test.samples, test.labels, device=device)
    seconds = max(NEAREST_SECONDS, time.perf_counter() - began)
    train, held_out = training_splits(prepared, resolved.config, Path(weights).parent)
    if held_out is not None:
        samples, labels, indices = held_out.samples, held_out.labels, held_out.indices
        validation = predict(network, samples, labels, device=device, indices=indices)
        confidence, predictions = Confidence.fit(
            validation, predictions, temperature=resolved.config.evaluate.temperature
        )
        confidence.write(Path(target).with_name(CONFIDENCE_FILE))
    predictions.save(Path(target))
    if nearest and (count := resolved.config.evaluate.nearest) and len(prepared.shape) == 3:
        network.views = None
        found = nearest_training_samples(
            network, predictions, test, train, device=device, count=count, seconds=seconds
        )
        if found is not None:
            found.write(Path(nearest))
    figures = Figures.build(resolved.named_metrics, prepared.classes)(predictions)
    if resolved.audited:
        excluded = resolved.config.dataset.exclude is not None
        figures |= audit_figures(found_audit(prepared), predictions, prepared.counts, excluded)
    return {"figures": {name: value for name, value in figures.items() if value == value}}


def export(
    config: Config,
    data: str,
    weights: str,
    target: str,
    emit: Emit,
    temperature: float | None = None,
) -> dict[str, Any]:
    """Write the trained network as a pt2 archive to the file `target`.

    Args:
        temperature: that it divides its logits by.

    Returns:
        refused: why torch.export cannot write this model, or None; digest: of its weights.
    """
    resolved, prepared = resolve_once(config, host()), PreparedDataset.open(Path(data))
    network = trained_network(resolved, prepared, Path(weights), torch.device("cpu"))
    if temperature is not None:
        network.temperature = torch.tensor(temperature)
    try:
        digest = networks.export(network, prepared, Path(target))
    except networks.NotExportableError as error:
        return {"refused": str(error)}
    return {"refused": None, "digest": digest}


def trained_network(
    resolved: ResolvedConfig, prepared: PreparedDataset, weights: Path, device: torch.device
) -> networks.Network:
    """The network as it is evaluated and served."""
    network = new_network(resolved, prepared, None)
    # The normalization is among the weights: it may be that of those which training began with.
    network.load_state_dict(checkpoint.load(weights)["network"])
    views = resolved.config.evaluate.views
    if views != "one":
        network.views = Views(*prepared.shape[1:], shifts=views == "mirror_and_shifts")
    return network.to(device)


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


def load_compiler() -> None:
    """Make torch import its compiler, which the first optimizer of a process asks for."""
    torch.optim.SGD([torch.zeros(1)])


def load_export() -> None:
    """Make torch import what the first export of a process needs."""
    program = torch.export.export(nn.Identity(), (torch.zeros(1),))
    torch.export.save(program, io.BytesIO())


STAGES: dict[str, Callable[..., dict[str, Any]]] = {
    stage.__name__: stage
    for stage in (
        *(check, try_plugins, prepare, extend, train, evaluate, export, judge),
        *(audit_dataset, judge_labels, inspect_dataset, inspect_model),
        *(find_learning_rate, find_branches, join),
    )
}
