"""The check of a configuration before any data are read: device, model, loss, schedule."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchyard.core.config.resolve import ResolvedConfig, resolve_once
from torchyard.core.config.schema import AUDIT_FIGURES, TrainConfig
from torchyard.core.config.weights import WeightsSource, weights_path
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.raw import SampleSpec
from torchyard.core.errors import UserError, suggestion
from torchyard.core.evaluation.figures import standard_names
from torchyard.core.formatting import dimensions
from torchyard.core.hosting.host import host
from torchyard.core.hosting.params import AugmentationParams, LossParams, MixingParams, RegionParams
from torchyard.core.preparation.prepare import find_prepared
from torchyard.core.preparation.sources import described
from torchyard.core.training import checkpoint
from torchyard.core.training.batches import total_steps
from torchyard.core.training.device import choose_device
from torchyard.core.training.events import Emit
from torchyard.core.training.network import (
    DryRun,
    Group,
    Network,
    StartingWeights,
    build_on,
    build_optimizer,
    check_normalization,
    dry_run,
    freeze,
    parameter_groups,
)
from torchyard.pipelines.worker.checks import trial_step
from torchyard.pipelines.worker.checks.trial_step import random_samples

Config = Mapping[str, Any]
UNKNOWN_BATCH_SIZE = 32  # in place of `auto`, before there are data


def check(
    config: Config,
    cache: str,
    emit: Emit,
    exports: bool = False,
    weights: str | None = None,
    resumed: bool = False,
) -> dict[str, Any]:
    """Check everything that can be checked before data are read.

    Args:
        exports: whether to try torch.export as well, which takes longer than all else.
        weights: the file with those of a run that `model.weights` names.
        resumed: whether the run has a checkpoint, so that it needs no other weights.

    Returns:
        device: where it would run; parameters: trainable ones, None where the data set's
        shape is not known before it is prepared; prepared: whether it is.

    Raises:
        UserError: with every problem found.
    """
    resolved = resolve_once(config, host()).with_batch_size(UNKNOWN_BATCH_SIZE)
    chosen = resolved.config.dataset
    prepared = find_prepared(chosen.name, resolved.dataset, Path(cache), chosen.reading)
    spec, problems = prepared.spec if prepared else None, []
    if prepared is None:
        try:
            spec = described(chosen.name, resolved.dataset)
        except UserError as error:
            problems += error.problems
    summary: dict[str, Any] = {"parameters": None, "shape": list(spec.shape) if spec else None}
    summary["prepared"] = prepared is not None
    try:
        summary["device"] = str(choose_device(resolved.config.device))
    except UserError as error:
        problems += error.problems
    if (rendezvous := resolved.config.train.rendezvous) is not None:
        from torchyard.core.training.parallel.nodes import check_first_host

        try:
            check_first_host(rendezvous)
        except UserError as error:
            problems += error.problems
    size = start = groups = None
    if prepared is not None:
        try:
            resolved.config.check_validation(prepared.validation is not None)
        except UserError as error:
            problems += error.problems
    if not resumed:
        try:
            start = starting_weights(resolved, weights)
        except UserError as error:
            problems += error.problems
    if spec is not None:
        try:
            size, groups = model_size(resolved, spec, start)
            summary["parameters"] = size.parameters
        except UserError as error:
            problems += error.problems
    # Without the data the number of steps is unknown: a very long run is assumed.
    samples = prepared.counts["train"] if prepared else 10**9
    steps = total_steps(samples, resolved.config.train)
    problems += step_problems(resolved, spec, size, groups, steps, prepared, exports=exports)
    if problems:
        raise UserError(problems)
    return summary


def starting_weights(resolved: ResolvedConfig, file: str | None) -> StartingWeights | None:
    """The weights that training begins with, if a configuration names some.

    Args:
        file: with those of a run that it names.

    Raises:
        UserError: they cannot be had.
    """
    named = resolved.weights
    if named is None:
        return None
    if WeightsSource.of(named) is WeightsSource.FILE:
        file = str(weights_path(named))
    return StartingWeights.open(named, Path(file) if file else None, resolved.model)


def model_size(
    resolved: ResolvedConfig, spec: SampleSpec, start: StartingWeights | None = None
) -> tuple[DryRun, list[Group]]:
    """The `dry_run` of the model, with its frozen layers, and the optimizer's groups.

    Args:
        start: the weights that training begins with.

    Raises:
        UserError: it cannot take such samples, has nothing to train, the weights are not its, or
            a group of the optimizer's has no parameters.
    """
    chosen = resolved.config.model
    problems: list[str] = []
    groups: list[Group] = []
    check_normalization(spec, resolved.config.dataset.normalize)

    def on_built(built: nn.Module) -> None:
        problems.clear()
        try:
            freeze(built, chosen.freeze)
            groups[:] = groups_of(resolved, built)
        except UserError as error:
            problems.extend(error.problems)
        try:
            if start is not None:
                start.fit(built, chosen.name)
        except UserError as error:
            problems.extend(error.problems)

    size = dry_run(resolved.model, _as_given(resolved, spec), chosen.name, on_built)
    if problems:
        raise UserError(problems)
    if not size.parameters:
        raise UserError(f"model: '{chosen.name}' has no parameter that is trained")
    if chosen.freeze_epochs is not None:  # what is frozen at first learns later
        size = replace(size, parameters=size.all_parameters)
    return size, groups


def groups_of(resolved: ResolvedConfig, model: nn.Module) -> list[Group]:
    """The optimizer's groups of a model whose layers are frozen.

    Raises:
        UserError: one has no parameters, or the optimizer has nothing of what is asked for.
    """
    later = resolved.config.model.freeze_epochs is not None
    learning = [name for name, weight in model.named_parameters() if weight.requires_grad or later]
    chosen = resolved.config.optimizer
    return parameter_groups(model, learning, chosen, resolved.group_settings, resolved.optimizer)


def step_problems(
    resolved: ResolvedConfig,
    spec: SampleSpec | None,
    size: DryRun | None,
    groups: list[Group] | None,
    steps: int,
    prepared: PreparedDataset | None,
    *,
    exports: bool = False,
) -> list[str]:
    """What is wrong with a training step of two samples, and with evaluating two and one.

    Args:
        spec: of the samples; None where it is not known yet.
        size: of the model; None if it cannot be built.
        groups: of its parameters, with it.
        steps: batches of the whole run.
        prepared: the data set, if it is prepared.
        exports: whether to try torch.export as well.
    """
    problems = _target_problems(resolved)
    mixes = any(isinstance(plugin, MixingParams) for plugin in resolved.augmentations)
    if resolved.config.train.sampler == "weighted" and prepared and prepared.train.weights is None:
        problems.append(
            f"train.sampler=weighted: the data set '{prepared.name}' gives its samples no weights"
        )
    trying = functools.partial(trial_step.trying, problems)
    before, threads = checkpoint.random_state(torch.device("cpu")), torch.get_num_threads()
    torch.set_num_threads(1)  # with so little work, several would wait for each other
    weights = trial_step.some_weights()
    tried: list[Group] = []
    views = resolved.config.evaluate.views
    if spec is not None and len(spec.shape) != 3 and views != "one":
        shape = dimensions(spec.shape)
        problems.append(f"evaluate.views: {views} is for images, and a sample is {shape}")
    if spec is not None:
        samples = trial_step.first_samples(prepared) if prepared else random_samples(spec)
        encoded = prepared.encoded if prepared else resolved.config.dataset.storage == "encoded"
        names = [choice.name for choice in resolved.config.augmentations]
        for number, (name, plugin) in enumerate(zip(names, resolved.augmentations, strict=True)):
            with trying(f"augmentations.{number}: '{name}': "):
                if encoded and isinstance(plugin, RegionParams):
                    trial_step.try_region(plugin, number)
                else:
                    trial_step.try_augmentation(plugin, samples)
        # The model is tried whatever is wrong with the loss.
        gradient = torch.ones(2, spec.num_classes or 2)
        if spec.num_classes is not None:
            with trying("loss: "):
                counts = [1] * spec.num_classes
                if prepared is not None:
                    counts = prepared.train.class_counts(spec.num_classes)
                soft = mixes and resolved.loss.takes_soft_targets
                gradient = trial_step.try_loss(resolved.loss, counts, soft_targets=soft)
            classes = prepared.classes if prepared else [str(i) for i in range(spec.num_classes)]
            problems += _figure_problems(resolved, classes)
        chosen = resolved.config.model
        if size is not None:

            def built(device: str) -> Network:
                model = build_on(device, resolved.model, spec)
                freeze(model, chosen.freeze)
                data = prepared or trial_step.unprepared(spec)
                return Network(model, data, resolved.config.dataset.normalize).to(device)

            single = _why_single(resolved.config.train, prepared)
            with trying(f"model: '{chosen.name}' "):
                weights = trial_step.try_model(
                    built, size, samples, gradient, single=single, exports=exports
                )
                tried = groups or []
    optimizer = schedule = None
    with trying("optimizer: "):
        optimizer = build_optimizer(resolved.optimizer, weights, tried)
    if optimizer is not None:
        with trying("scheduler: "):
            schedule = trial_step.built_schedule(resolved.scheduler, optimizer, steps)
        with trying("optimizer: "):
            trial_step.try_optimizer(resolved.optimizer, optimizer)
    if schedule is not None:
        with trying("scheduler: "):
            trial_step.try_schedule(resolved.scheduler, schedule)
    problems += misfits(resolved, prepared)
    for number, (name, gate) in enumerate(resolved.named_gates):
        with trying(f"promote.gates.{number}: '{name}': "):
            trial_step.a_callable(gate.build())
    checkpoint.restore_random_state(before, torch.device("cpu"))
    torch.set_num_threads(threads)
    return problems


def _target_problems(resolved: ResolvedConfig) -> list[str]:
    """What is wrong with a loss whose targets an augmentation mixes."""
    chosen = zip(resolved.config.augmentations, resolved.augmentations, strict=True)
    mixing = [
        f"augmentations.{number} '{choice.name}'"
        for number, (choice, plugin) in enumerate(chosen)
        if isinstance(plugin, MixingParams)
    ]
    if not mixing or resolved.loss.takes_soft_targets:
        return []
    takers = [
        name
        for name, registration in host().registrations("loss")
        if issubclass(registration.params, LossParams) and registration.params.takes_soft_targets
    ]
    return [
        f"loss: '{resolved.config.loss.name}' takes no soft targets, which {' and '.join(mixing)} "
        f"make{'s' if len(mixing) == 1 else ''}  (accepts: {', '.join(takers)})"
    ]


def _figure_problems(resolved: ResolvedConfig, classes: Sequence[str]) -> list[str]:
    """What is wrong with the metrics, and the figures that nothing makes but something needs."""
    problems: list[str] = []
    made = [*standard_names(len(classes)), *(AUDIT_FIGURES if resolved.audited else ())]
    for number, (name, metric) in enumerate(resolved.named_metrics):
        with trial_step.trying(problems, f"metrics.{number}: '{name}': "):
            its = trial_step.try_metric(name, metric, classes)
            if twice := sorted({*its} & {*made}):
                raise ValueError(f"there is a figure '{twice[0]}' already")
            made += its
    if problems:
        return problems  # which of the figures there will be is not known
    needed = [("train.monitor", resolved.config.train.monitor)]
    for number, (name, gate) in enumerate(resolved.named_gates):
        where = f"promote.gates.{number}: '{name}'"
        with trial_step.trying(problems, f"{where}: "):
            needed += [(where, used) for used in gate.figures_used()]
    problems += [
        f"{where}: no figure '{figure}'.{suggestion(figure, made)}"
        for where, figure in needed
        if figure not in made
    ]
    return problems


def misfits(resolved: ResolvedConfig, prepared: PreparedDataset | None) -> list[str]:
    """What an optimizer or a schedule needs, and this configuration does not give it."""
    config, problems = resolved.config, []
    has_none = prepared is not None and prepared.validation is None and not config.train.validation
    if resolved.scheduler.follows_metric and has_none:
        problems.append(
            f"scheduler: '{config.scheduler.name}' follows a figure of the validation: set "
            "train.validation, e.g. 0.1"
        )
    if resolved.optimizer.needs_closure and config.precision == "float16":
        problems.append(
            f"precision: '{config.optimizer.name}' computes the gradient more than once in a step, "
            "and float16 scales it once: choose bfloat16 or float32"
        )
    return problems


def region_first(
    augmentations: Sequence[AugmentationParams], prepared: PreparedDataset
) -> tuple[RegionParams | None, Sequence[AugmentationParams]]:
    """What draws the parts of encoded images that are decoded, if anything, and the rest."""
    first = augmentations[0] if augmentations else None
    if prepared.encoded and isinstance(first, RegionParams):
        return first, augmentations[1:]
    return None, augmentations


def _why_single(settings: TrainConfig, prepared: PreparedDataset | None) -> str:
    """Why training has batches of a single sample, as far as one can tell; "" if it has none."""
    if settings.known_batch_size == 1:
        return "as train.batch_size=1 asks for"
    if settings.accumulate * settings.world_size == settings.known_batch_size:
        return f"as train.accumulate={settings.accumulate} asks for"
    processes, last = settings.world_size, 0
    if prepared is not None:
        last = prepared.counts["train"] % settings.known_batch_size
    # A process without a sample of its own takes one with a weight of 0.
    if processes > 1 and (settings.known_batch_size < 2 * processes or 1 < last < 2 * processes):
        return f"as {processes} processes share a batch"
    return ""


def _as_given(resolved: ResolvedConfig, spec: SampleSpec) -> SampleSpec:
    """The samples as the model gets them: token ids that are normalized are float32."""
    normalized = not isinstance(resolved.config.dataset.normalize, str)
    return replace(spec, dtype="float32") if normalized and spec.dtype == "int64" else spec
