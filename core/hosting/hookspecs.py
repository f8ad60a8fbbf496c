"""The hooks a plugin implements: each registers parameter classes under names.

`register(name, params_class)` may be called any number of times. A hook runs once, when its
plugin is loaded; nothing is built before a run asks for it by name.
"""

from __future__ import annotations

from collections.abc import Callable

import pluggy

hookspec = pluggy.HookspecMarker("torchyard")
hookimpl = pluggy.HookimplMarker("torchyard")

Register = Callable[[str, type], None]

# The hook of each kind of plugin.
HOOKS = {
    "dataset": "register_datasets",
    "augmentation": "register_augmentations",
    "model": "register_models",
    "loss": "register_losses",
    "optimizer": "register_optimizers",
    "scheduler": "register_schedulers",
    "gate": "register_gates",
    "metric": "register_metrics",
}


@hookspec
def register_datasets(register: Register) -> None:
    """Data sets: a `DatasetParams` whose `build(downloads)` returns the raw splits."""


@hookspec
def register_augmentations(register: Register) -> None:
    """Augmentations: an `AugmentationParams` whose callable changes a batch of samples."""


@hookspec
def register_models(register: Register) -> None:
    """Models: a `ModelParams` whose network maps samples N x input_shape to N x classes."""


@hookspec
def register_losses(register: Register) -> None:
    """Losses: a `LossParams` whose callable maps (logits N x C, targets N) to a scalar."""


@hookspec
def register_optimizers(register: Register) -> None:
    """Optimizers: an `OptimizerParams` whose `build(parameters)` returns the optimizer."""


@hookspec
def register_schedulers(register: Register) -> None:
    """Schedulers: a `SchedulerParams` whose schedule is stepped after every batch."""


@hookspec
def register_gates(register: Register) -> None:
    """Gates: a `GateParams` whose callable judges a model that would become the champion."""


@hookspec
def register_metrics(register: Register) -> None:
    """Metrics: a `MetricParams` whose callable maps (logits N x C, targets N) to figures."""
