"""Every loss against its formula, and what it refuses."""

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from core.config import read_recipe
from core.host import host

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
LOSSES = ("cross_entropy", "mse", "nll")
CLASSES = 4
GENERATOR = torch.Generator().manual_seed(3)
LOGITS = 3 * torch.randn(6, CLASSES, generator=GENERATOR)
TARGETS = torch.tensor([0, 3, 1, 1, 2, 0])
WEIGHT = (1.0, 0.5, 0.0, 4.0)


def params(name, **settings):
    return host().find("loss", name).params.model_validate(settings)


def value(name, logits=LOGITS, targets=TARGETS, **settings):
    loss = params(name, **settings).build(logits.shape[1])(logits, targets)
    assert loss.shape == ()
    return loss.item()


def log_probabilities(row):
    total = math.log(sum(math.exp(logit) for logit in row))
    return [logit - total for logit in row]


def cross_entropy(smoothing=0.0, weight=(1.0,) * CLASSES):
    """Σ over the samples of w·(-log p), smoothed, over the sum of the targets' weights."""
    loss = 0.0
    for row, target in zip(LOGITS.tolist(), TARGETS.tolist(), strict=True):
        for index, log_p in enumerate(log_probabilities(row)):
            share = smoothing / CLASSES + (1 - smoothing) * (index == target)
            loss -= weight[index] * share * log_p
    return loss / sum(weight[target] for target in TARGETS.tolist())


def test_every_loss_is_tested_here():
    assert [name for name, _ in host().registrations("loss")] == list(LOSSES)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.75, 1.0])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_cross_entropy_is_its_formula(smoothing, weight):
    expected = cross_entropy(smoothing, weight or (1.0,) * CLASSES)
    given = value("cross_entropy", label_smoothing=smoothing, weight=weight)
    assert given == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_nll_is_its_formula_on_logits_and_on_log_probabilities(weight):
    expected = cross_entropy(weight=weight or (1.0,) * CLASSES)
    assert value("nll", weight=weight) == pytest.approx(expected, rel=1e-5)
    already = LOGITS.log_softmax(dim=1)
    assert value("nll", already, weight=weight) == pytest.approx(expected, rel=1e-5)


def test_mse_is_against_one_hot_targets():
    expected = sum(
        (logit - (index == target)) ** 2
        for row, target in zip(LOGITS.tolist(), TARGETS.tolist(), strict=True)
        for index, logit in enumerate(row)
    ) / (len(TARGETS) * CLASSES)
    assert value("mse") == pytest.approx(expected, rel=1e-5)
    assert value("mse", torch.eye(CLASSES)[TARGETS]) == 0


def test_mse_knows_classes_that_no_target_is_of():
    assert value("mse", torch.zeros(2, 9), torch.tensor([0, 1])) == pytest.approx(2 / 18)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_flow_and_lower_the_loss(name):
    logits = LOGITS.clone().requires_grad_()
    loss_function = params(name).build(CLASSES)
    before = loss_function(logits, TARGETS)
    before.backward()
    assert logits.grad.isfinite().all()
    assert loss_function(logits.detach() - 0.1 * logits.grad, TARGETS) < before


@pytest.mark.parametrize("name", LOSSES)
def test_huge_and_half_precision_logits_are_taken(name):
    assert math.isfinite(value(name, 1e4 * LOGITS))
    assert math.isfinite(value(name, LOGITS.bfloat16()))


@pytest.mark.parametrize("name", ["cross_entropy", "nll"])
def test_the_class_weights_move_with_the_module(name):
    loss = params(name, weight=WEIGHT).build(CLASSES)
    assert loss.to("meta").weight.is_meta
    assert "weight" in dict(loss.named_buffers())


@pytest.mark.parametrize("name", ["cross_entropy", "nll"])
@pytest.mark.parametrize("count", [0, 3, 5])
def test_class_weights_of_another_number_are_refused(name, count):
    with pytest.raises(ValueError, match=f"weight has {count} values, the data has 4 classes"):
        params(name, weight=(1.0,) * count).build(CLASSES)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cross_entropy", {"label_smoothing": 1.1}),
        ("cross_entropy", {"label_smoothing": -0.1}),
        ("cross_entropy", {"weight": (1, -1)}),
        ("cross_entropy", {"weight": "heavy"}),
        ("nll", {"weight": (float("nan"), 1)}),
        ("nll", {"label_smoothing": 0.1}),
        ("mse", {"weight": (1, 1)}),
    ],
)
def test_what_is_out_of_range_is_refused(name, settings):
    with pytest.raises(ValidationError):
        params(name, **settings)


def test_class_weights_from_the_command_line():
    words = ["loss.weight=[1, 0.5, 0, 4]", "loss.label_smoothing=0.1"]
    loss = read_recipe("digits", words, PRESETS, host()).loss
    assert loss.weight == WEIGHT
    expected = cross_entropy(0.1, WEIGHT)
    assert loss.build(CLASSES)(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-5)
