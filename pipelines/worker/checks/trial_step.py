"""A training step on two samples, plugin by plugin, so that nothing fails in the middle of a run.

Each function raises what the plugin raises, or a ValueError that says what is wrong.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.predictions import Predictions
from torchyard.core.data.raw import SampleSpec
from torchyard.core.evaluation.figures import figures_of
from torchyard.core.formatting import dimensions
from torchyard.core.hosting import params
from torchyard.core.hosting.containment import contained
from torchyard.core.training.network import (
    DryRun,
    Network,
    NotExportableError,
    refusal,
    traced,
    without_memory,
)

# A larger model is tried on torch's meta device, which computes shapes alone.
MOST_WEIGHTS = 5_000_000
SOME_WEIGHTS = {"weight": (2, 2), "bias": (2,)}
Weights = Mapping[str, nn.Parameter]
Called = TypeVar("Called")
MOST_FLOPS = 20_000_000  # of one sample's forward pass


@contextmanager
def trying(problems: list[str], what: str) -> Iterator[None]:
    """Add what a plugin raises to the problems, in a line that begins with `what`."""
    try:
        with contained():
            yield
    except ValueError as error:
        problems.append(what + first_line(error))
    except Exception as error:
        problems.append(f"{what}{type(error).__name__}: {first_line(error)}")


def random_samples(spec: SampleSpec) -> torch.Tensor:
    """Two samples as they are stored; of token ids the one that every vocabulary has."""
    if spec.dtype == "uint8":
        return torch.randint(256, (2, *spec.shape), dtype=torch.uint8)
    return torch.randn(2, *spec.shape).to(getattr(torch, spec.dtype)) * (spec.dtype != "int64")


def a_callable(built: Called) -> Called:
    """What a plugin built, which must be callable."""
    if not callable(built):
        raise ValueError(f"builds a {type(built).__name__}, which cannot be called")
    return built


def built_schedule(
    plugin: params.SchedulerParams, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of so many steps, which must have the methods of one."""
    schedule = plugin.build(optimizer, steps)
    if not all(hasattr(schedule, name) for name in ("step", "state_dict", "load_state_dict")):
        raise ValueError(
            f"builds a {type(schedule).__name__}, not a torch.optim.lr_scheduler.LRScheduler"
        )
    return schedule


def try_augmentation(plugin: params.AugmentationParams, samples: torch.Tensor) -> None:
    """Change two samples, which must keep their shape and type, as mixed targets must."""
    augment: Any = a_callable(plugin.build(tuple(samples.shape[1:])))
    given, indices = [samples], torch.arange(len(samples))
    if isinstance(plugin, params.MixingParams):
        given.append(torch.eye(2)[indices % 2])
    made = augment(*(each.clone() for each in given), indices, 1)
    if len(given) == 1:
        made = (made,)
    elif not isinstance(made, tuple) or len(made) != 2:
        raise ValueError(f"returns {_layout(made)}, not (samples, targets)")
    for was, now in zip(given, made, strict=True):
        if _layout(now) != _layout(was):
            raise ValueError(f"makes {_layout(now)} of {_layout(was)}: both must stay")


def try_region(plugin: params.RegionParams, number: int) -> None:
    """Draw a part of a photo.

    Args:
        number: its place among the augmentations, which must be the first.
    """
    if number:
        raise ValueError("must be the first: of photos, nothing but the part it draws is decoded")
    height, width = 375, 500
    top, left, rows, columns = plugin.region(height, width, np.random.default_rng(0))
    if not (0 <= top < top + rows <= height and 0 <= left < left + columns <= width):
        part = f"({top}, {left}, {rows}, {columns})"
        raise ValueError(f"draws {part} of {height}x{width}: not a part of it")


def try_loss(
    plugin: params.LossParams, counts: Sequence[int], *, soft_targets: bool = False
) -> torch.Tensor:
    """The gradient of the loss of two samples by their logits.

    Args:
        plugin: the loss.
        counts: the training samples of each class.
        soft_targets: whether targets are float32 N x classes.
    """
    classes = len(counts)
    logits, targets = torch.zeros(2, classes, requires_grad=True), torch.arange(2) % classes
    if soft_targets:
        targets = nn.functional.one_hot(targets, classes).float()
    fitted = plugin.with_class_counts(counts)
    if not isinstance(fitted, type(plugin)):
        kind = type(plugin).__name__
        raise ValueError(f"with_class_counts() returns a {type(fitted).__name__}, not a {kind}")
    loss = a_callable(fitted.build(classes))(logits, targets)
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise ValueError(f"returns {_layout(loss)} for 2 samples, not a scalar")
    gradient = None
    if loss.requires_grad:
        [gradient] = torch.autograd.grad(loss.sum(), logits, allow_unused=True)
    if gradient is None:
        raise ValueError("does not depend on the logits, so nothing can be learnt from it")
    return gradient


def try_metric(name: str, plugin: params.MetricParams, classes: Sequence[str]) -> list[str]:
    """The names of its figures of eight random predictions of each of the first classes."""
    metric = a_callable(plugin.build(classes))
    generator, count = np.random.default_rng(0), 8 * min(len(classes), 16)
    targets = np.arange(count) % len(classes)
    logits = generator.standard_normal((count, len(classes)), dtype=np.float32)
    return list(figures_of(name, metric, Predictions(logits, targets)))


def try_model(
    build: Callable[[str], Network],
    size: DryRun,
    samples: torch.Tensor,
    gradient: torch.Tensor,
    *,
    single: str = "",
    exports: bool = False,
) -> Weights:
    """`try_network` with a new network; returns its parameters by name, or stand-ins for them.

    Args:
        build: makes the network on a device.
        size: of the model.
        exports: whether to try torch.export as well.
    """

    def run(device: str) -> Weights:
        network = build(device)
        try_network(network, samples.to(device), gradient, single)
        if exports:
            try_export(network, samples)
        return dict(network.model.named_parameters())

    if size.all_parameters <= MOST_WEIGHTS and size.flops <= MOST_FLOPS:
        return run("cpu")
    return stand_ins(without_memory(run))


def try_network(
    network: Network, samples: torch.Tensor, gradient: torch.Tensor, single: str
) -> None:
    """Evaluate two samples and one, then train with two: forward, and backward.

    Args:
        network: on the device of the samples.
        samples: two, as they are stored.
        gradient: of the loss by the logits, 2 x classes.
        single: why training has batches of one sample; "" if it has none.

    Raises:
        ValueError: it cannot take so many, does not return N x classes, or cannot be trained.
    """
    cases = [(False, 2, "evaluation"), (False, 1, "evaluation")]
    cases += [(True, 1, f"training, {single}")] * bool(single) + [(True, 2, "training")]
    shape = dimensions(samples.shape[1:])
    if samples.dtype == torch.int64:
        shape += f" integers from {int(samples.min())} to {int(samples.max())}"
    for training, count, where in cases:
        network.train(training)
        what = f"{count} sample{'s' * (count > 1)} of {shape} in {where}"
        try:
            logits = network(samples[:count])
        except Exception as error:
            raise ValueError(refusal(error, what)) from error
        expected = (count, *gradient.shape[1:])
        if not isinstance(logits, torch.Tensor) or logits.shape != expected:
            raise ValueError(f"returns {_layout(logits)} for {what}, not {expected}")
    try:
        logits.backward(gradient.to(logits.device))
    except Exception as error:
        raise ValueError(f"has no gradient: {type(error).__name__}: {first_line(error)}") from error


def try_export(network: Network, samples: torch.Tensor) -> None:
    """Have torch.export write the network down."""
    try:
        traced(network, samples)
    except NotExportableError as error:
        raise ValueError(str(error).removeprefix("The model ")) from error


def unprepared(spec: SampleSpec) -> PreparedDataset:
    """What a network needs to know of a data set that is not prepared yet."""
    classes = tuple(map(str, range(spec.num_classes or 2)))
    statistics = ((0.5,), (0.25,))
    return PreparedDataset(Path(), "", classes, spec.shape, spec.dtype, *statistics, {}, "", "")


def first_samples(data: PreparedDataset) -> torch.Tensor:
    """Two training samples as they are stored; of token ids, those with the least and greatest."""
    chosen = data.train.samples[:2]
    if data.dtype == "int64":
        parts = [np.asarray(part.samples) for part in (data.train, data.test)]
        least = min(parts, key=lambda part: part.min())
        greatest = max(parts, key=lambda part: part.max())
        rows = [least[least.min(axis=1).argmin()], greatest[greatest.max(axis=1).argmax()]]
        chosen = np.stack(rows)
    return torch.from_numpy(chosen[[0, -1]])


def some_weights() -> Weights:
    """Two parameters with gradients, for an optimizer whose network is not known."""
    weights = {name: nn.Parameter(torch.zeros(shape)) for name, shape in SOME_WEIGHTS.items()}
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    return weights


def stand_ins(weights: Weights) -> Weights:
    """Small parameters on the CPU with gradients, of the dimensions and types of given ones."""
    small = {}
    for name, weight in weights.items():
        side = [min(length, 2) for length in weight.shape]
        small[name] = nn.Parameter(torch.zeros(side, dtype=weight.dtype), weight.requires_grad)
        if weight.grad is not None:
            gradient = torch.ones(side, dtype=weight.dtype)
            small[name].grad = gradient.to_sparse() if weight.grad.is_sparse else gradient
    return small


def try_optimizer(plugin: params.OptimizerParams, optimizer: torch.optim.Optimizer) -> None:
    """A step of an optimizer whose parameters have gradients."""
    if not plugin.needs_closure:
        try_step(optimizer, "without a closure")
        return
    calls: list[torch.Tensor] = []

    def closure() -> torch.Tensor:
        calls.append(torch.zeros(()))
        return calls[-1]

    try_step(optimizer, "with a closure", closure)
    if not calls:
        raise ValueError("its step() does not call the closure, which computes the gradients")


def try_schedule(
    plugin: params.SchedulerParams, schedule: torch.optim.lr_scheduler.LRScheduler
) -> None:
    """A step of a schedule, after that of its optimizer."""
    if plugin.follows_metric:
        try_step(schedule, "after every epoch, with a metric", 1.0)
    else:
        try_step(schedule, "after every batch, without a metric")


def try_step(owner: Any, how: str, *arguments: Any) -> None:
    """A step of an optimizer or a schedule, which must fit into a checkpoint.

    Args:
        how: it is called, for messages.
        arguments: of the step.
    """
    try:
        owner.step(*arguments)
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"its step(), called {how}, raises {reason}") from error
    buffer = io.BytesIO()
    try:
        torch.save(owner.state_dict(), buffer)
        buffer.seek(0)
        owner.load_state_dict(torch.load(buffer, weights_only=True))
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"its state cannot be kept in a checkpoint: {reason}") from error


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).strip().partition("\n")[0]


def _layout(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
