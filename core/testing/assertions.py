"""The test kit's checks of every kind but models, as `torchyard.testing` exports them.

Each takes an instance of the plugin's class, and raises `PluginFault`, an AssertionError that
names the class, its file, the check and what is wrong. The random generators' states are
restored.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from torchyard.core.data.predictions import Predictions, PredictionTable
from torchyard.core.evaluation.figures import figures_of, standard_figures
from torchyard.core.hosting import params as kinds
from torchyard.core.preparation.prepare import find_prepared, prepare_dataset
from torchyard.core.testing.faults import SAMPLES, Checks, generators_kept, same, tiny_batch
from torchyard.core.training import checkpoint

GATE_CLASSES = 5
OPTIMIZER_STEPS = 200
CERTAIN = 30.0  # a logit for which the softmax rounds to 1


@generators_kept()
def assert_loss_plugin(params: kinds.LossParams, num_classes: int = 10) -> None:
    """Check for a finite scalar with a finite gradient, lower for better logits.

    It is built for classes that differ in frequency.

    Raises:
        PluginFault: with the first thing that is wrong.
    """
    check, where = Checks(params, kinds.LossParams), "with_class_counts"
    counts, given = [10 * (index + 1) for index in range(num_classes)], params.model_dump_json()
    with check.running(where):
        fitted = params.with_class_counts(counts)
        params.with_class_counts([0, *counts[1:]])
    kind = type(fitted).__name__
    check.that(isinstance(fitted, type(params)), where, f"returns a {kind}, not a {check.name}")
    check.that(params.model_dump_json() == given, where, "it changes the parameters in place")
    with check.running("build"):
        loss_function = fitted.build(num_classes)
    targets = torch.arange(SAMPLES) % num_classes
    right = CERTAIN * (2 * torch.nn.functional.one_hot(targets, num_classes).float() - 1)
    undecided = tiny_batch((num_classes,))
    values_of: dict[str, float] = {}
    cases = {"right": right, "wrong": right.roll(1, dims=1), "undecided": undecided}
    cases["a single sample's"] = undecided[:1]
    for case, values in cases.items():
        logits, labels = values.clone().requires_grad_(), targets[: len(values)].clone()
        with check.running(f"{case} logits"):
            loss = loss_function(logits, labels)
        where = f"{case} logits"
        check.that(isinstance(loss, torch.Tensor), where, f"returns a {type(loss).__name__}")
        check.that(loss.shape == (), where, f"returns a shape of {tuple(loss.shape)}, not a scalar")
        check.that(loss.isfinite(), where, f"the loss is {loss.item()}")
        check.that(loss.requires_grad, where, "the loss does not depend on the logits' gradient")
        with check.running(f"{case} logits, backward"):
            [gradient] = torch.autograd.grad(loss, logits, allow_unused=True)
        check.that(gradient is not None, where, "no gradient reaches the logits")
        check.that(gradient.isfinite().all(), where, "the gradient is NaN or infinite")
        unchanged = same(logits.detach(), values) and same(labels, targets[: len(labels)])
        check.that(unchanged, where, "it changes logits or targets in place")
        check.that(same(loss, loss_function(logits, labels)), where, "a second call differs")
        values_of[case] = loss.item()
        if case == "undecided":
            # A small enough step against the gradient lowers the loss.
            steps = (1, 0.1, 0.01, 1e-3)
            after = [float(loss_function(values - step * gradient, labels)) for step in steps]
            check.that(min(after) < loss.item(), where, "its gradient does not lead downwards")
    check.that(
        values_of["right"] < values_of["wrong"],
        "order",
        f"right logits give {values_of['right']:.4g}, wrong ones {values_of['wrong']:.4g}",
    )
    if params.takes_soft_targets:
        where = "soft targets"
        one_hot = torch.nn.functional.one_hot(targets, num_classes).float()
        mixed, logits = (one_hot + one_hot.roll(1, 0)) / 2, undecided.clone().requires_grad_()
        with check.running(where):
            hard, loss = loss_function(undecided, one_hot), loss_function(logits, mixed)
            [gradient] = torch.autograd.grad(loss, logits)
        text = f"one-hot ones give {hard.item():.6g}, their indices {values_of['undecided']:.6g}"
        alike = math.isclose(hard.item(), values_of["undecided"], rel_tol=1e-4, abs_tol=1e-6)
        check.that(alike, where, text)
        finite = loss.shape == () and loss.isfinite() and gradient.isfinite().all()
        check.that(finite, where, "no finite scalar with a finite gradient of mixed ones")


@generators_kept()
def assert_optimizer_plugin(params: kinds.OptimizerParams) -> None:
    """Check that it lowers a quadratic, uses the learning rate, and continues from a checkpoint.

    Raises:
        PluginFault: with the first thing that is wrong.
    """
    check = Checks(params, kinds.OptimizerParams)

    def start() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(shape) + 3) for shape in ((4, 3), (5,), (2,))]
        with check.running("build"):
            optimizer = params.build(weight for weight in weights)  # as `Module.parameters()`
        right, kind = isinstance(optimizer, torch.optim.Optimizer), type(optimizer).__name__
        check.that(right, "build", f"returns a {kind}, not a torch.optim.Optimizer")
        has_rate = all("lr" in group for group in optimizer.param_groups)
        check.that(has_rate, "build", "a parameter group has no 'lr': nothing to schedule")
        return weights, optimizer

    def descend(
        weights: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: int
    ) -> float:
        def closure() -> float:
            with torch.enable_grad():
                optimizer.zero_grad()
                # The last weight has no gradient, like a layer that is not used.
                quadratic = sum((weight.square().sum() for weight in weights[:-1]), torch.zeros(()))
                quadratic.backward()  # type: ignore[no-untyped-call]
            return quadratic.item()

        for _ in range(steps):
            if not params.needs_closure:
                closure()
            with check.running("step"):
                optimizer.step(closure) if params.needs_closure else optimizer.step()
        return float(sum(weight.detach().square().sum() for weight in weights[:-1]))

    weights, optimizer = start()
    unused, first = weights[-1].detach().clone(), descend(weights, optimizer, 0)
    last = descend(weights, optimizer, OPTIMIZER_STEPS)
    text = f"{first:.4g} before and {last:.4g} after {OPTIMIZER_STEPS} steps"
    check.that(last < first, "learning", f"a quadratic does not fall: {text}")
    check.that(same(weights[-1], unused), "step", "it moves a weight that has no gradient")

    # ---- the schedule writes the learning rate into the groups
    weights, optimizer = start()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    still = descend(weights, optimizer, 3) == first
    check.that(still, "learning rate", "it moves although its groups' 'lr' is 0: not read there")

    weights, optimizer = start()
    descend(weights, optimizer, 3)
    others, resumed = start()
    for other, weight in zip(others, weights, strict=True):
        other.data.copy_(weight.data)
    check.reloaded(optimizer, resumed)
    check.that(
        descend(weights, optimizer, 3) == descend(others, resumed, 3),
        "checkpoint",
        "with its saved state loaded it takes other steps: a part of its state is outside of "
        "`self.state` and `self.param_groups`",
    )


@generators_kept()
def assert_scheduler_plugin(params: kinds.SchedulerParams, total_steps: int = 100) -> None:
    """Check for finite learning rates to the end of a run, and the same from a checkpoint.

    Raises:
        PluginFault: with the first thing that is wrong.
    """
    check = Checks(params, kinds.SchedulerParams)

    def start() -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        weight = torch.nn.Parameter(torch.zeros(()))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        with check.running("build"):
            scheduler = params.build(optimizer, total_steps)
        right = isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
        check.that(right, "build", f"returns a {type(scheduler).__name__}, not an LRScheduler")
        return optimizer, scheduler

    def steps(optimizer: Any, scheduler: Any, count: int) -> list[float]:
        rates = []
        for _ in range(count):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            with check.running(f"step {len(rates)}"):
                scheduler.step(*([1.0] if params.follows_metric else []))
        return rates

    rates = steps(*start(), total_steps)
    for number, rate in enumerate(rates, 1):
        right = math.isfinite(rate) and rate >= 0
        check.that(right, "learning rate", f"{rate} at step {number} of {total_steps}")
    check.that(any(rates), "learning rate", "0 at every step")

    half = total_steps // 2
    optimizer, scheduler = start()
    steps(optimizer, scheduler, half)
    other, resumed = start()
    check.reloaded(optimizer, other)
    check.reloaded(scheduler, resumed)
    check.that(
        steps(other, resumed, total_steps - half) == rates[half:],
        "checkpoint",
        "with its saved state loaded it has other learning rates",
    )


@generators_kept()
def assert_augmentation_plugin(
    params: kinds.AugmentationParams,
    input_shape: tuple[int, ...] = (3, 32, 32),
    *,
    vocabulary: int | None = None,
) -> None:
    """Check that samples keep their shape and type, and change by torch's generator alone.

    The same of the targets of a `MixingParams`, whose rows still sum to 1; of a `RegionParams`
    also that its regions are in the image, and drawn by the generator alone.

    Args:
        params: the plugin.
        input_shape: one sample, (C, H, W), (D,), (C, L), or (L,) of token ids.
        vocabulary: of token ids, how many there are; None for other samples.

    Raises:
        PluginFault: with the first thing that is wrong.
    """
    check = Checks(params, kinds.AugmentationParams)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device, count in [(device, count) for device in devices for count in (1, SAMPLES)]:
        samples = tiny_batch(input_shape, vocabulary)[:count]
        if len(input_shape) == 3:
            samples = ((samples + 4) * 32).clamp(0, 255).to(torch.uint8)
        indices = torch.arange(count, device=device)
        given = [samples.to(device)]
        if isinstance(params, kinds.MixingParams):
            given.append(torch.nn.functional.one_hot(indices, SAMPLES).float())
        before, order = [each.clone() for each in given], indices.clone()
        where, results = f"{count} samples on {device}", []
        for other_seed in (1, 2):
            # torch's generator alone has the same state both times.
            checkpoint.seed_everything(other_seed)
            torch.manual_seed(0)
            with check.running(where):
                augment: Any = params.build(input_shape)
                made = augment(*given, indices, 1)
            results.append(made if len(given) > 1 and isinstance(made, tuple) else (made,))
        first, second = results
        both = len(first) == len(given)
        check.that(both, where, "does not return (samples, targets)")
        unchanged = all(map(same, given, before)) and same(indices, order)
        check.that(unchanged, where, "it changes samples, targets or indices in place")
        for name, was, now, again in zip(("", "targets: "), before, first, second, strict=False):
            for aspect in ("shape", "dtype", "device"):
                old, new = getattr(was, aspect), getattr(now, aspect, None)
                check.that(old == new, where, f"{name}{aspect} {new}, not {old} as it was")
            alike = same(now, again)
            check.that(alike, where, f"{name}differs under one torch seed: draws elsewhere")
        for targets in first[1:]:
            sums = bool(((targets.sum(1) - 1).abs() < 1e-4).all() and (targets >= 0).all())
            check.that(sums, where, "targets: a row does not sum to 1, or has a negative number")
    if isinstance(params, kinds.RegionParams):
        _check_regions(check, params)


def _check_regions(check: Checks, params: kinds.RegionParams) -> None:
    for number, (height, width) in enumerate([(480, 640), (30, 1000), (7, 1)] * 5):
        where, regions = f"region of {height} x {width} pixels", []
        for other_seed in (1, 2):
            checkpoint.seed_everything(other_seed)
            with check.running(where):
                regions.append(params.region(height, width, np.random.default_rng(number)))
        top, left, high, wide = region = regions[0]
        whole = all(isinstance(each, int) for each in region)
        check.that(whole, where, f"returns {region}, not four int")
        fits = 0 <= top < top + high <= height and 0 <= left < left + wide <= width
        check.that(fits, where, f"returns {region}, which is empty or not within the image")
        check.that(regions[1] == region, where, "differs under one seed: draws elsewhere")


def assert_gate_plugin(params: kinds.GateParams) -> None:
    """Check that a model that is always right passes, with a reason, and twice the same way.

    Raises:
        PluginFault: with the first thing that is wrong.
    """
    check = Checks(params, kinds.GateParams)
    targets = np.arange(SAMPLES * GATE_CLASSES) % GATE_CLASSES
    classes = tuple(f"class {index}" for index in range(GATE_CLASSES))

    def table(logits: npt.NDArray[np.float32]) -> PredictionTable:
        made = Predictions(logits, targets.astype(np.int64))
        figures = standard_figures(made)
        return PredictionTable(made, "a run", "a data set", classes, "a digest", figures)

    always_right = CERTAIN * np.eye(GATE_CLASSES, dtype=np.float32)[targets]
    generator = np.random.default_rng(0)
    guessing = generator.standard_normal(always_right.shape, dtype=np.float32)
    for where, champion in (("without a champion", None), ("against guesses", table(guessing))):
        verdicts = []
        for logits in (always_right, always_right, guessing):
            with check.running(where):
                verdicts.append(params.build()(table(logits.copy()), champion))
        for verdict in verdicts:
            right, kind = isinstance(verdict, kinds.Verdict), type(verdict).__name__
            check.that(right, where, f"returns a {kind}, not a Verdict")
            check.that(verdict.reason.strip(), where, "has no reason")
            numbers = all(isinstance(each, (int, float)) for each in verdict.figures.values())
            check.that(numbers, where, "has figures that are not numbers")
        check.that(verdicts[0] == verdicts[1], where, "judges the same model differently")
        check.that(verdicts[0].passed, where, f"refuses who is right: {verdicts[0].reason}")


@generators_kept()
def assert_metric_plugin(params: kinds.MetricParams, num_classes: int = 10) -> None:
    """Check for numbers under the same names, whatever the predictions, and better for right ones.

    Raises:
        PluginFault: with the first thing that is wrong.
    """
    check = Checks(params, kinds.MetricParams)
    with check.running("build"):
        metric = params.build([f"class {index}" for index in range(num_classes)])
    targets = np.arange(SAMPLES * num_classes) % num_classes
    always_right = CERTAIN * np.eye(num_classes, dtype=np.float32)[targets]
    generator = np.random.default_rng(0)
    # As sure as they are wrong: some metrics count confident predictions alone.
    guesses = 10 * generator.standard_normal(always_right.shape, dtype=np.float32)
    cases = {
        "right predictions": (always_right, targets),
        "guesses": (guesses, targets),
        "one class's samples": (guesses[:SAMPLES], np.zeros(SAMPLES, np.int64)),
        "a single sample": (guesses[:1], targets[:1]),
    }
    made: dict[str, dict[str, float]] = {}
    for where, (logits, labels) in cases.items():
        given = Predictions(logits, labels)
        with check.running(where):
            made[where], again = (figures_of(check.name, metric, given) for _ in range(2))
        same_names = made[where].keys() == made["right predictions"].keys()
        check.that(same_names, where, "has figures of other names than for right predictions")
        alike = np.array_equal([*made[where].values()], [*again.values()], equal_nan=True)
        check.that(alike, where, "a second call differs")
    for name, best in made["right predictions"].items():
        figure, guessed = name.partition("/")[2] or name, made["guesses"][name]
        check.that(math.isfinite(best), "right predictions", f"'{figure}' is {best}")
        worse = guessed > best if params.lower_is_better else guessed < best
        order = f"'{figure}' is {best:.4g} for right predictions, {guessed:.4g} for guesses"
        side = "lower" if params.lower_is_better else "higher"
        check.that(worse, "order", f"{order}, and {side} is better")


@generators_kept()
def assert_dataset_plugin(params: kinds.DatasetParams, folder: Path) -> None:
    """Check that it prepares as `describe` says, and twice the same samples.

    Args:
        params: the plugin.
        folder: for downloads and prepared arrays; earlier downloads in it are used.

    Raises:
        PluginFault: with the first thing that is wrong.
    """
    check = Checks(params, kinds.DatasetParams)
    with check.running("prepare"):
        data = prepare_dataset(check.name, params, folder, lambda *_: None)
    again = find_prepared(check.name, params, folder)
    check.that(again, "prepare", "not found again: its `fingerprint` changes by itself")
    # Another name is another key: it is prepared anew, from the same downloads.
    with check.running("prepare again"):
        second = prepare_dataset(f"{check.name} again", params, folder, lambda *_: None)
    alike = second.digest == data.digest
    check.that(alike, "seed", "prepared twice with the same parameters, the samples differ")
    with check.running("describe"):
        spec = params.describe()
    if spec is not None:
        shape = spec.shape == data.shape
        check.that(shape, "describe", f"returns {spec.shape}, the samples are {data.shape}")
        classes = spec.num_classes in (None, len(data.classes))
        check.that(
            spec.dtype == data.dtype,
            "describe",
            f"returns samples of {spec.dtype}, they are {data.dtype}",
        )
        text = f"returns {spec.num_classes} classes, there are {len(data.classes)}"
        check.that(classes, "describe", text)
    check.that(len(data.classes) > 1, "classes", "a classifier needs two or more")
    counts = np.bincount(data.train.labels, minlength=len(data.classes))
    missing = [name for name, count in zip(data.classes, counts, strict=True) if not count]
    check.that(not missing, "classes", f"no training sample is of {', '.join(missing)}")
    check.that(np.isfinite(data.mean + data.std).all(), "samples", "NaN or infinite")
