"""The work of each stage, as the torch process does it: paths and plain values in and out."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from torchyard.core.config.resolve import ResolvedConfig, resolve
from torchyard.core.data.dataset import PreparedDataset, Split
from torchyard.core.data.files import atomic_write
from torchyard.core.data.raw import SampleSpec, stratified_split
from torchyard.core.errors import RunError, UserError
from torchyard.core.evaluation.predict import predict
from torchyard.core.hosting.manager import host
from torchyard.core.hosting.params import Augmentation
from torchyard.core.preparation.prepare import find_prepared, prepare_dataset
from torchyard.core.training import checkpoint, device, loop, network
from torchyard.core.training.distributed import ALONE, DataParallelTeam, Team
from torchyard.core.training.events import Event, StageProgress, TrainingBatch
from torchyard.core.training.execution.choice import THREADS, Execution
from torchyard.core.training.execution.compilation import CompiledStep
from torchyard.core.training.run_log import figures_logged
from torchyard.pipelines.worker.inspection import inspect_dataset, inspect_model  # noqa: F401 - stages, too

SHOWN = 36  # samples in the picture of a training batch


Emit = Callable[[Event], None]


def check(config: Mapping[str, Any], cache: str, emit: Emit) -> dict[str, Any]:
    """Try everything that can be tried before data are read: device, model, loss, schedule.

    Returns:
        device: where it would run; parameters: trainable ones, None where the data set's
        shape is not known before it is prepared.

    Raises:
        UserError: with every problem found.
    """
    resolved = resolve(config, host())
    found = find_prepared(resolved.config.dataset.name, resolved.dataset, Path(cache))
    spec = found.spec if found else resolved.dataset.describe()
    problems = []
    summary: dict[str, Any] = {"parameters": None, "shape": list(spec.shape) if spec else None}
    try:
        summary["device"] = str(device.choose(resolved.config.device))
    except UserError as error:
        problems += error.problems
    if spec is not None:
        try:
            summary["parameters"] = _trial(resolved, spec).parameters
        except UserError as error:
            problems += error.problems
        if spec.num_classes is not None:
            # Without the data, or max_steps, a long run stands for the length.
            samples = found.counts["train"] if found else 10**9
            problems += _try_parts(resolved, spec, loop.total_steps(samples, resolved.config.train))
    if problems:
        raise UserError(problems)
    return summary


def _trial(resolved: ResolvedConfig, spec: SampleSpec) -> network.Trial:
    chosen = resolved.config.model
    return network.try_out(
        resolved.model, spec, chosen.name, lambda built: network.freeze(built, chosen.freeze)
    )


def _try_parts(resolved: ResolvedConfig, spec: SampleSpec, steps: int) -> list[str]:
    """Build loss, optimizer and schedule once, on a parameter of no consequence."""
    problems: list[str] = []

    @contextlib.contextmanager
    def trying(kind: str) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            problems.append(f"{kind}: {error}")
        except Exception as error:  # a plugin may raise anything
            problems.append(f"{kind}: {type(error).__name__}: {error}")

    optimizer = None
    names = [choice.name for choice in resolved.config.augmentations]
    for at, (name, augmentation) in enumerate(zip(names, resolved.augmentations, strict=True)):
        with trying(f"augmentations.{at}: '{name}'"):
            augmentation.build(spec.shape)
    with trying("loss"):
        resolved.loss.build(spec.num_classes or 2)
    with trying("optimizer"):
        optimizer = resolved.optimizer.build([nn.Parameter(torch.zeros(1))])
    if optimizer is not None:
        with trying("scheduler"):
            resolved.scheduler.build(optimizer, steps)
    return problems


def prepare(config: Mapping[str, Any], cache: str, emit: Emit) -> dict[str, Any]:
    """Find or make the prepared arrays.

    Returns:
        folder: where they are; found: whether they were there already.
    """
    resolved = resolve(config, host())
    name = resolved.config.dataset.name
    found = find_prepared(name, resolved.dataset, Path(cache))
    if found:
        return {"folder": str(found.folder), "found": True}
    data = prepare_dataset(
        name, resolved.dataset, Path(cache), lambda *step: emit(StageProgress(*step))
    )
    return {"folder": str(data.folder), "found": False}


def train(config: Mapping[str, Any], data: str, folder: str, emit: Emit) -> dict[str, Any]:
    """Train into `folder`, from its last checkpoint if it has one.

    Returns:
        weights: the checkpoint to use; fit: how training ended; placement: where things
        were; peaks: memory; weights_digest: sha256 of the weights; parameters: how many.
    """
    resolved = resolve(config, host())
    settings = resolved.config.train
    place = device.choose(resolved.config.device)
    handles = (config, data, folder)
    if settings.parallel == "ddp":
        from torchyard.core.training.distributed import train_together

        return train_together(_train, handles, settings.world_size, place, emit)
    team = DataParallelTeam() if settings.parallel == "data_parallel" else ALONE
    return _train(handles, emit, team, place)


def _train(
    handles: tuple[Mapping[str, Any], str, str], emit: Emit, team: Team, place: torch.device
) -> dict[str, Any]:
    """Train as one of a team; what `train` returns."""
    config, data, folder = handles
    resolved = resolve(config, host())
    settings = resolved.config.train
    device.set_deterministic(settings.deterministic)
    prepared = PreparedDataset.open(Path(data))
    trial = _trial(resolved, prepared.spec)
    checkpoint.seed_everything(settings.seed)
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)

    net = _network(resolved, prepared)
    network.freeze(net.model, resolved.config.model.freeze)
    net = net.to(place)
    whole = prepared.train
    held_out = None
    if settings.validation:
        rest, part = stratified_split(whole.labels, settings.validation, settings.seed)
        held_out = Split(whole.samples, whole.labels, part)
        whole = Split(whole.samples, whole.labels, rest)
    steps = loop.total_steps(len(whole), settings)
    execution = Execution.choose(resolved.config, net.model, trial, steps, place)
    execution.apply(net)
    if problems := _try_parts(resolved, prepared.spec, steps):
        raise UserError(problems)
    augmentations = [augment.build(prepared.shape) for augment in resolved.augmentations]
    loss = resolved.loss.build(len(prepared.classes))
    optimizer = resolved.optimizer.build([p for p in net.parameters() if p.requires_grad])
    scheduler = resolved.scheduler.build(optimizer, steps)
    if isinstance(loss, nn.Module):
        loss = loss.to(place)
    data_device = place if device.fits(whole.samples.nbytes, place) else torch.device("cpu")
    if team.rank:  # all begin with the same weights, but each draws its own dropout
        checkpoint.seed_everything((settings.seed + team.rank) % 2**32)
    if team.leads and len(prepared.shape) == 3:
        first = Path(folder) / "training_batch.npz"
        samples, labels = _first_batch(whole, augmentations, settings.seed, place, SHOWN)
        with atomic_write(first) as file:
            np.savez(file, samples=samples.cpu().numpy(), labels=labels.cpu().numpy())
        emit(TrainingBatch(str(first)))
    compiled, compilation = None, "false"
    if execution.compiled:
        emit(StageProgress("compiling", 0, 0))
        batch = _first_batch(whole, augmentations, settings.seed, place, settings.batch_size)
        try:
            gradients_used = settings.clip_norm is not None or settings.log_gradients
            compiled = CompiledStep(net, loss, optimizer, *batch, gradients_used=gradients_used)
            compilation = f"in {compiled.seconds:.1f} s"
        except RunError as error:
            if settings.compile:
                raise
            compilation = f"false: {error}"
    result = loop.fit(
        net,
        loss,
        optimizer,
        scheduler,
        whole,
        held_out,
        settings,
        device=place,
        data_device=data_device,
        precision=execution.precision,
        folder=Path(folder),
        emit=figures_logged(Path(folder), emit) if team.leads else emit,
        augmentations=augmentations,
        compiled=compiled,
        team=team,
    )
    best = held_out is not None and result.best_epoch != result.epochs
    return {
        "weights": str(Path(folder) / (checkpoint.BEST if best else checkpoint.LAST)),
        "weights_digest": network.weights_digest(net),
        "parameters": trial.parameters,
        "fit": asdict(result),
        "placement": device.describe(place)
        | {
            "model_device": str(next(net.model.parameters()).device),
            "normalization_device": str(net.normalize.factor.device),
            "data_device": str(data_device),
            "precision": execution.precision,
            "execution": str(execution),
            "compiled": compilation,
            "processes": str(team.size),
        },
        "peaks": device.peak_memory(place),
    }


def _first_batch(
    split: Split, augmentations: Sequence[Augmentation], seed: int, place: torch.device, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the first samples of the first epoch as training will see them, and their labels."""
    index = loop.epoch_order(len(split), seed, 0)[:size]
    if split.indices is not None:
        index = torch.from_numpy(split.indices)[index]
    samples = torch.from_numpy(split.samples)[index].to(place)
    # Training is to draw what it would have drawn without this.
    with torch.random.fork_rng([place] if place.type == "cuda" else []):
        for augment in augmentations:
            samples = augment(samples, index.to(place), 1)
    return samples, torch.from_numpy(split.labels)[index].to(place)


def evaluate(
    config: Mapping[str, Any], data: str, weights: str, target: str, emit: Emit
) -> dict[str, Any]:
    """Predict the test split with trained weights; the predictions go to the file `target`."""
    resolved = resolve(config, host())
    prepared = PreparedDataset.open(Path(data))
    place = device.choose(resolved.config.device)
    torch.set_num_threads(resolved.config.train.threads or THREADS)
    torch.backends.mkldnn.enabled = True  # type: ignore[assignment]
    net = _restored(resolved, prepared, Path(weights), place)
    test = prepared.test
    predict(net, test.samples, test.labels, device=place).save(Path(target))
    return {}


def export(
    config: Mapping[str, Any], data: str, weights: str, target: str, emit: Emit
) -> dict[str, Any]:
    """Write the trained network as a pt2 archive to the file `target`.

    Returns:
        refused: why torch.export cannot write this model, or None.
    """
    resolved = resolve(config, host())
    prepared = PreparedDataset.open(Path(data))
    net = _restored(resolved, prepared, Path(weights), torch.device("cpu"))
    try:
        network.export(net, prepared, Path(target))
    except network.NotExportableError as error:
        return {"refused": str(error)}
    return {"refused": None}


def load_compiler() -> None:
    """Make torch import what its first optimizer of a process does: 0.7 seconds."""
    torch.optim.SGD([torch.zeros(1)])


def load_export() -> None:
    """Make torch import what the first export of a process needs: 0.3 seconds more."""
    program = torch.export.export(nn.Identity(), (torch.zeros(1),))
    torch.export.save(program, io.BytesIO())


def _network(resolved: ResolvedConfig, prepared: PreparedDataset) -> network.Network:
    model = resolved.model.build(prepared.shape, len(prepared.classes))
    return network.Network(model, prepared, resolved.config.dataset.normalize)


def _restored(
    resolved: ResolvedConfig, prepared: PreparedDataset, weights: Path, place: torch.device
) -> network.Network:
    net = _network(resolved, prepared)
    net.load_state_dict(checkpoint.load(weights)["network"])
    return net.to(place)
