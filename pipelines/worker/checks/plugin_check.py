"""The check of plugins by themselves: one step of each on two samples, without a configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from torchyard.core.data.raw import SampleSpec
from torchyard.core.errors import UserError
from torchyard.core.hosting import params
from torchyard.core.hosting.hookspecs import HOOKS
from torchyard.core.hosting.host import host
from torchyard.core.hosting.lint import class_line
from torchyard.core.hosting.registration import Registration
from torchyard.core.training.events import Emit
from torchyard.core.training.network import Network, build_on, build_optimizer, dry_run
from torchyard.pipelines.worker.checks import trial_step

# What a model or an augmentation may be made for; the first that it takes is tried.
SPECS = (
    SampleSpec((3, 32, 32), 10),
    SampleSpec((1, 28, 28), 10),
    SampleSpec((3, 224, 224), 10),
    SampleSpec((64,), 10),
    SampleSpec((2, 128), 10),
    SampleSpec((32,), 10, "int64"),
)
STEPS = 1000
MOST_OF_A_CLASS = 20  # names that are made in a loop from one class statement


def try_plugins(emit: Emit) -> dict[str, Any]:
    """Try every plugin that is not built in and whose parameters all have defaults.

    Returns:
        problems: (file, line or None, message) of each.
    """
    host().load_all()
    found: list[tuple[str, int | None, str]] = []
    made: Counter[Any] = Counter()
    for registration in _third_party():
        line, source = class_line(registration.params), registration.source
        made[source, line] += 1
        if made[source, line] > MOST_OF_A_CLASS:
            continue
        problems: list[str] = []
        with trial_step.trying(problems, f"{registration.kind} '{registration.name}': "):
            fields = registration.params.model_fields.values()
            if not any(field.is_required() for field in fields):
                _TRIALS[registration.kind](registration.params())
        found += [(source.file or source.origin, line, problem) for problem in problems]
    return {"problems": found}


def _third_party() -> Iterator[Registration]:
    for kind in HOOKS:
        for _, registration in host().registrations(kind):
            if not registration.builtin:
                yield registration


def _try_dataset(plugin: params.DatasetParams) -> None:
    spec = plugin.describe()
    if not isinstance(spec, SampleSpec | None):
        raise ValueError(f"describe() returns a {type(spec).__name__}, not a SampleSpec or None")
    state: object = plugin.fingerprint()
    if not isinstance(state, str):
        raise ValueError(f"fingerprint() returns a {type(state).__name__}, not a text")


def _try_augmentation(plugin: params.AugmentationParams) -> None:
    for spec in SPECS:
        try:
            plugin.build(spec.shape)
        except ValueError:  # it is not for such samples
            continue
        trial_step.try_augmentation(plugin, trial_step.random_samples(spec))
        return


def _try_model(plugin: params.ModelParams) -> None:
    refusals: list[str] = []
    for spec in SPECS:
        try:
            size = dry_run(plugin, spec, type(plugin).__name__)
        except UserError as error:
            refusals.append(str(error).partition("' ")[2])
            continue

        def built(device: str, spec: SampleSpec = spec) -> Network:
            model = build_on(device, plugin, spec)
            return Network(model, trial_step.unprepared(spec), "statistics").to(device)

        if not size.parameters:
            raise ValueError("has no parameter that is trained")
        samples, gradient = trial_step.random_samples(spec), torch.ones(2, 10)
        trial_step.try_model(built, size, samples, gradient, exports=True)
        return
    # A model for other samples refuses these; to return something else, or to raise what has
    # nothing to do with a shape for all of them alike, is its fault.
    faults = [reason for reason in refusals if reason.startswith(("returns", "builds"))]
    if all(reason.startswith("raises") for reason in refusals):
        faults += refusals
    if faults:
        raise ValueError(faults[0])


def _try_loss(plugin: params.LossParams) -> None:
    trial_step.try_loss(plugin, [20] * 10)
    if plugin.takes_soft_targets:
        trial_step.try_loss(plugin, [20] * 10, soft_targets=True)


def _try_optimizer(plugin: params.OptimizerParams) -> None:
    optimizer = build_optimizer(plugin, trial_step.some_weights(), [])
    trial_step.try_optimizer(plugin, optimizer)


def _try_scheduler(plugin: params.SchedulerParams) -> None:
    optimizer = torch.optim.SGD(trial_step.some_weights().values(), lr=0.1, momentum=0.9)
    schedule = trial_step.built_schedule(plugin, optimizer, STEPS)
    optimizer.step()
    trial_step.try_schedule(plugin, schedule)


def _try_gate(plugin: params.GateParams) -> None:
    trial_step.a_callable(plugin.build())


def _try_metric(plugin: params.MetricParams) -> None:
    trial_step.try_metric("metric", plugin, [f"class {index}" for index in range(10)])


_TRIALS: dict[str, Any] = {
    "dataset": _try_dataset,
    "augmentation": _try_augmentation,
    "model": _try_model,
    "loss": _try_loss,
    "optimizer": _try_optimizer,
    "scheduler": _try_scheduler,
    "gate": _try_gate,
    "metric": _try_metric,
}
