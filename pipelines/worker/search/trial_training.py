"""A training that leaves nothing behind, to find a setting with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from torchyard.core.config.resolve import ResolvedConfig
from torchyard.core.data.dataset import PreparedDataset, Split
from torchyard.core.hosting.params import Loss
from torchyard.core.training import checkpoint
from torchyard.core.training import network as networks
from torchyard.core.training.batches import TrainingData, build_augmentation
from torchyard.core.training.state import TrainingState
from torchyard.pipelines.worker.checks.config_check import model_size, region_first

Schedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


@dataclass(frozen=True)
class TrialTraining:
    """What a run of the configuration would train, and on what.

    Attributes:
        state: with new weights.
        loss: (logits, targets) to a scalar.
        data: the training split, with its augmentations.
    """

    state: TrainingState
    loss: Loss
    data: TrainingData

    @classmethod
    def start(
        cls,
        resolved: ResolvedConfig,
        prepared: PreparedDataset,
        train: Split,
        device: torch.device,
        start: networks.StartingWeights | None,
        schedule: Schedule,
    ) -> TrialTraining:
        """Begin as the run would; every random generator of this process is seeded.

        Args:
            start: the weights to begin with; None: new ones.
        """
        config, classes = resolved.config, len(prepared.classes)
        _, groups = model_size(resolved, prepared.spec, start)
        checkpoint.seed_everything(0 if config.train.seed == "per_run" else config.train.seed)
        network, freezing, _ = begun_network(resolved, prepared, device, start)
        network.train()
        loss = resolved.loss.with_class_counts(train.class_counts(classes)).build(classes)
        if isinstance(loss, nn.Module):
            loss = loss.to(device)
        parameters = dict(network.model.named_parameters())
        optimizer = networks.build_optimizer(resolved.optimizer, parameters, groups)
        state = TrainingState(
            network,
            optimizer,
            schedule(optimizer),
            device=device,
            precision="float32" if config.precision == "auto" else config.precision,
            needs_closure=resolved.optimizer.needs_closure,
            freezing=freezing,
            ema=config.train.ema,
        )
        region, changes = region_first(resolved.augmentations, prepared)
        augmentations = [build_augmentation(each, prepared.shape, classes) for each in changes]
        cpu, drawn = torch.device("cpu"), region.region if region else None
        return cls(state, loss, TrainingData(train, None, augmentations, cpu, region=drawn))


def begun_network(
    resolved: ResolvedConfig,
    prepared: PreparedDataset,
    device: torch.device,
    start: networks.StartingWeights | None,
) -> tuple[networks.Network, networks.Freezing, str]:
    """The network that training begins with, what of it is frozen, and what of `start` it took."""
    network, chosen, taken = new_network(resolved, prepared, start), resolved.config, ""
    if start is not None:
        normalize = chosen.dataset.normalize
        spec, classes = prepared.spec, prepared.classes
        taken = start.apply(network, chosen.model.name, spec, normalize, classes)
    freezing = networks.Freezing.of(network.model, chosen.model)
    return network.to(device), freezing, taken


def new_network(
    resolved: ResolvedConfig, prepared: PreparedDataset, start: networks.StartingWeights | None
) -> networks.Network:
    """The network, with the normalization that goes with the weights it is to have."""
    model = networks.build_model(resolved.model, prepared.spec)
    normalize = resolved.config.dataset.normalize
    if start is not None and normalize == "auto":
        normalize = start.normalization(prepared.spec) or normalize
    return networks.Network(model, prepared, normalize)
