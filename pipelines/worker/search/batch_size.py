"""`train.batch_size=auto`: the largest batch that fits into memory, found by real steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.data.dataset import PreparedDataset, Split
from torchyard.core.data.files import atomic_write
from torchyard.core.errors import UserError
from torchyard.core.training.batches import Batch, Batches, TrainingData
from torchyard.core.training.network import StartingWeights
from torchyard.core.training.parallel.strategy import Strategy
from torchyard.core.training.step import Step
from torchyard.pipelines.worker.search.trial_training import TrialTraining

FILE = "batch_size.json"  # in the run's folder: a run that resumes has the same
MOST = 1024  # larger batches want another learning rate, and train hardly faster
STEPS_PER_EPOCH = 16  # at least
STEPS_TRIED = 2  # the second has the optimizer's state in memory, too


def with_found_batch_size(
    resolved: ResolvedConfig,
    prepared: PreparedDataset,
    train: Split,
    device: torch.device,
    folder: Path,
    start: StartingWeights | None,
) -> ResolvedConfig:
    """The configuration with the number in the run's folder, or one that is found and put there."""
    file = folder / FILE
    if not file.exists():
        size = find_batch_size(resolved, prepared, train, device, start)
        with atomic_write(file) as writer:
            writer.write(json.dumps({"batch_size": size}).encode())
    return resolved.with_batch_size(json.loads(file.read_bytes())["batch_size"])


def with_recorded_batch_size(resolved: ResolvedConfig, folder: Path, into: Path) -> ResolvedConfig:
    """The configuration with the number in a run's folder, which goes into that of its extension.

    Raises:
        UserError: none was found for that run.
    """
    if resolved.config.train.batch_size != "auto":
        return resolved
    try:
        recorded = (folder / FILE).read_bytes()
    except FileNotFoundError:
        raise UserError("train.batch_size=auto: a run that had a number keeps one") from None
    with atomic_write(into / FILE) as writer:
        writer.write(recorded)
    return resolved.with_batch_size(json.loads(recorded)["batch_size"])


def find_batch_size(
    resolved: ResolvedConfig,
    prepared: PreparedDataset,
    train: Split,
    device: torch.device,
    start: StartingWeights | None,
) -> int:
    """The largest power of two whose steps fit into memory.

    It leaves an epoch 16 steps, and is 1,024 at most. On a GPU steps are tried, with half as many
    samples each time that memory is short. On a CPU, where a process that asks for too much may
    be killed, the activations of two samples tell first how many fit into half of the free memory.

    Raises:
        RunError: a single sample does not fit.
    """
    trial = TrialTraining.start(
        resolved,
        prepared,
        train,
        device,
        start,
        lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    )
    most = max(2, min(MOST, len(train) // STEPS_PER_EPOCH))
    if device.type == "cpu":
        samples = _batch(resolved, trial.data, device, 2).inputs
        fitting = (
            psutil.virtual_memory().available // 2 // _sample_bytes(trial.state.network, samples)
        )
        most = max(2, min(most, fitting))
    size = 1 << (most.bit_length() - 1)
    batch = _batch(resolved, trial.data, device, size)
    sized = resolved.with_batch_size(size).config.train
    step = Step(trial.state, trial.loss, sized, Strategy(), None)
    for _ in range(STEPS_TRIED):
        step(batch)
    return size // trial.state.position.parts


def _batch(resolved: ResolvedConfig, data: TrainingData, device: torch.device, size: int) -> Batch:
    settings = resolved.with_batch_size(size).config.train
    return Batch(*Batches(data, settings, device).first(size), size, 1.0)


def _sample_bytes(network: nn.Module, samples: torch.Tensor) -> int:
    """What a step keeps of one sample until the backward pass, twice: its gradients are as large.

    https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks
    """
    weights = {weight.data_ptr() for weight in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> Any:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(samples)
    return max(1, 2 * sum(kept.values()) // len(samples))
