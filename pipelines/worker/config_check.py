"""The check of a configuration before any data are read: device, model, loss, schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchyard.core.config.resolve import ResolvedConfig, resolve_once
from torchyard.core.data.raw import SampleSpec
from torchyard.core.errors import UserError
from torchyard.core.hosting.host import host
from torchyard.core.preparation.prepare import find_prepared
from torchyard.core.training.device import choose_device
from torchyard.core.training.events import Emit
from torchyard.core.training.loop import total_steps
from torchyard.core.training.network import DryRun, dry_run, freeze

Config = Mapping[str, Any]


def check(config: Config, cache: str, emit: Emit) -> dict[str, Any]:
    """Check everything that can be checked before data are read.

    Returns:
        device: where it would run; parameters: trainable ones, None where the data set's
        shape is not known before it is prepared.

    Raises:
        UserError: with every problem found.
    """
    resolved = resolve_once(config, host())
    prepared = find_prepared(resolved.config.dataset.name, resolved.dataset, Path(cache))
    spec = prepared.spec if prepared else resolved.dataset.describe()
    problems = []
    summary: dict[str, Any] = {"parameters": None, "shape": list(spec.shape) if spec else None}
    try:
        summary["device"] = str(choose_device(resolved.config.device))
    except UserError as error:
        problems += error.problems
    if spec is not None:
        try:
            summary["parameters"] = model_size(resolved, spec).parameters
        except UserError as error:
            problems += error.problems
        if spec.num_classes is not None:
            # Without the data the number of steps is unknown: a very long run is assumed.
            samples = prepared.counts["train"] if prepared else 10**9
            steps = total_steps(samples, resolved.config.train)
            problems += plugin_problems(resolved, spec, steps)
    if problems:
        raise UserError(problems)
    return summary


def model_size(resolved: ResolvedConfig, spec: SampleSpec) -> DryRun:
    """The `dry_run` of the model, with its frozen layers."""
    chosen = resolved.config.model
    return dry_run(resolved.model, spec, chosen.name, lambda built: freeze(built, chosen.freeze))


def plugin_problems(resolved: ResolvedConfig, spec: SampleSpec, steps: int) -> list[str]:
    """Build augmentations, loss, optimizer and schedule once, on a dummy parameter."""
    problems: list[str] = []

    @contextlib.contextmanager
    def trying(setting: str) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            problems.append(f"{setting}: {error}")
        except Exception as error:  # a plugin may raise anything
            problems.append(f"{setting}: {type(error).__name__}: {error}")

    optimizer = None
    names = [choice.name for choice in resolved.config.augmentations]
    for number, (name, plugin) in enumerate(zip(names, resolved.augmentations, strict=True)):
        with trying(f"augmentations.{number}: '{name}'"):
            plugin.build(spec.shape)
    with trying("loss"):
        resolved.loss.build(spec.num_classes or 2)
    with trying("optimizer"):
        optimizer = resolved.optimizer.build([nn.Parameter(torch.zeros(1))])
    if optimizer is not None:
        with trying("scheduler"):
            resolved.scheduler.build(optimizer, steps)
    return problems
