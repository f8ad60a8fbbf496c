"""Every loss against its formula, and what it refuses."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.utils.class_weight import compute_class_weight

from torchyard import UserError
from torchyard.core.config.resolve import read_config
from torchyard.core.hosting.host import host
from torchyard.testing import assert_loss_plugin

PRESETS = Path(__file__).parents[2] / "pipelines" / "presets"
LOSSES = ("bce_with_logits", "cross_entropy", "focal", "mse", "nll", "smooth_l1")
CLASSES = 4
GENERATOR = torch.Generator().manual_seed(3)
LOGITS = 3 * torch.randn(6, CLASSES, generator=GENERATOR)
TARGETS = torch.tensor([0, 3, 1, 1, 2, 0])
WEIGHT = (1.0, 0.5, 0.0, 4.0)
WEIGHTED = (
    ("cross_entropy", "weight"),
    ("nll", "weight"),
    ("bce_with_logits", "pos_weight"),
    ("focal", "alpha"),
)


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


def against_one_hot(error):
    """The mean over samples and classes of error(logit, its one-hot target, its class)."""
    return sum(
        error(logit, float(index == target), index)
        for row, target in zip(LOGITS.tolist(), TARGETS.tolist(), strict=True)
        for index, logit in enumerate(row)
    ) / (len(TARGETS) * CLASSES)


def focal(gamma=2.0, alpha=(1.0,) * CLASSES):
    """The mean over the samples of alpha (1 - p)^gamma (-log p)."""
    loss = 0.0
    for row, target in zip(LOGITS.tolist(), TARGETS.tolist(), strict=True):
        log_p = log_probabilities(row)[target]
        loss -= alpha[target] * (1 - math.exp(log_p)) ** gamma * log_p
    return loss / len(TARGETS)


def test_every_loss_is_tested_here():
    assert [name for name, _ in host().registrations("loss")] == list(LOSSES)


SOFT = (
    *(("cross_entropy", {"label_smoothing": smoothing}) for smoothing in (0, 0.1)),
    *(("cross_entropy", {"label_smoothing": 0.3, "weight": WEIGHT}), ("nll", {"weight": WEIGHT})),
    *((name, {}) for name in ("nll", "mse", "smooth_l1", "bce_with_logits")),
    ("bce_with_logits", {"pos_weight": (1, 2, 3, 4)}),
)


def test_all_but_focal_take_soft_targets():
    takers = [name for name in LOSSES if params(name).takes_soft_targets]
    assert takers == [name for name in LOSSES if name != "focal"] == sorted({n for n, _ in SOFT})


@pytest.mark.parametrize(("name", "chosen"), SOFT)
def test_one_hot_targets_give_what_their_indices_give(name, chosen):
    one_hot = torch.nn.functional.one_hot(TARGETS, CLASSES).float()
    before = one_hot.clone()
    given = value(name, targets=one_hot, **chosen)
    assert given == pytest.approx(value(name, **chosen), rel=1e-5)
    assert torch.equal(one_hot, before)


@pytest.mark.parametrize("name", ["cross_entropy", "nll"])
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_soft_targets_weigh_the_losses_of_all_classes(name, weight):
    shares = torch.rand(6, CLASSES, generator=torch.Generator().manual_seed(0)).softmax(1)
    expected = total = 0.0
    for row, shared in zip(LOGITS.tolist(), shares.tolist(), strict=True):
        for index, log_p in enumerate(log_probabilities(row)):
            expected -= (weight or (1,) * CLASSES)[index] * shared[index] * log_p
            total += (weight or (1,) * CLASSES)[index] * shared[index]
    given = value(name, targets=shares, weight=weight)
    assert given == pytest.approx(expected / total, rel=1e-5)


@pytest.mark.parametrize("name", ["mse", "smooth_l1", "bce_with_logits"])
def test_soft_targets_are_what_each_logit_is_measured_against(name):
    function = getattr(
        torch.nn.functional, {"bce_with_logits": "binary_cross_entropy_with_logits"}.get(
            name, "mse_loss" if name == "mse" else "smooth_l1_loss"
        )
    )  # fmt: skip
    shares = torch.rand(6, CLASSES, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert value(name, targets=shares) == pytest.approx(function(LOGITS, shares).item())


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


@pytest.mark.parametrize("beta", [None, 0.0, 0.5, 3.0])
def test_smooth_l1_is_against_one_hot_targets(beta):
    bound = 1.0 if beta is None else beta

    def error(logit, one_hot, _):
        away = abs(logit - one_hot)
        return away**2 / (2 * bound) if away < bound else away - bound / 2

    settings = {} if beta is None else {"beta": beta}
    assert value("smooth_l1", **settings) == pytest.approx(against_one_hot(error), rel=1e-5)
    assert value("smooth_l1", torch.eye(CLASSES)[TARGETS], **settings) == 0


@pytest.mark.parametrize("pos_weight", [None, (1.0, 0.5, 2.0, 4.0)])
def test_bce_asks_of_each_class_whether_it_is_the_target(pos_weight):
    def error(logit, one_hot, index):
        p = 1 / (1 + math.exp(-logit))
        weight = pos_weight[index] if pos_weight else 1.0
        return -weight * one_hot * math.log(p) - (1 - one_hot) * math.log(1 - p)

    given = value("bce_with_logits", pos_weight=pos_weight)
    assert given == pytest.approx(against_one_hot(error), rel=1e-5)


@pytest.mark.parametrize("name", ["bce_with_logits", "smooth_l1"])
def test_one_hot_knows_classes_that_no_target_is_of(name):
    targets = torch.tensor([0, 1])
    expected = {"bce_with_logits": math.log(2), "smooth_l1": 0.5 * 2 / 18}
    assert value(name, torch.zeros(2, 9), targets) == pytest.approx(expected[name])


@pytest.mark.parametrize("gamma", [None, 0.0, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("alpha", [None, WEIGHT])
def test_focal_is_its_formula(gamma, alpha):
    settings = {} if gamma is None else {"gamma": gamma}
    expected = focal(alpha=alpha or (1.0,) * CLASSES, **settings)
    assert value("focal", alpha=alpha, **settings) == pytest.approx(expected, rel=1e-5)


def test_focal_without_focus_is_cross_entropy():
    assert value("focal", gamma=0) == pytest.approx(value("cross_entropy"), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_focal_of_a_sure_network_has_a_gradient(gamma):
    # 1 - p rounds to 0 in the first row and p to 0 in the second.
    logits = torch.tensor([[60.0, 0.0, 0.0], [300.0, 0.0, 0.0]], requires_grad=True)
    params("focal", gamma=gamma).build(3)(logits, torch.tensor([0, 1])).backward()
    assert logits.grad.isfinite().all()
    # What is sure and right counts nothing; what is sure and wrong counts as in cross-entropy.
    expected = torch.tensor([[0.0, 0.0, 0.0], [0.5, -0.5, 0.0]])
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bce_with_logits", {}),
        ("bce_with_logits", {"pos_weight": (1.0, 0.5, 2.0, 4.0)}),
        ("smooth_l1", {}),
        ("smooth_l1", {"beta": 0.1}),
        ("focal", {}),
        ("focal", {"gamma": 0.5, "alpha": WEIGHT}),
    ],
)
def test_gradients_are_those_of_the_loss(name, settings):
    loss_function = params(name, **settings).build(CLASSES).double()
    logits = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: loss_function(given, TARGETS), logits)


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


@pytest.mark.parametrize(("name", "weight"), WEIGHTED)
def test_the_class_weights_move_with_the_module(name, weight):
    loss = params(name, **{weight: (1.0, 0.5, 2.0, 4.0)}).build(CLASSES)
    assert getattr(loss.to("meta"), weight).is_meta
    assert weight in dict(loss.named_buffers())


@pytest.mark.parametrize(("name", "weight"), WEIGHTED)
@pytest.mark.parametrize("count", [0, 3, 5])
def test_class_weights_of_another_number_are_refused(name, weight, count):
    with pytest.raises(ValueError, match=f"^{weight} has {count} values, the data has 4 classes"):
        params(name, **{weight: (1.0,) * count}).build(CLASSES)


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
        ("smooth_l1", {"beta": -1}),
        ("bce_with_logits", {"pos_weight": (1, 0)}),
        ("bce_with_logits", {"weight": (1, 1)}),
        ("focal", {"gamma": -0.1}),
        ("focal", {"alpha": (1, -1)}),
        ("focal", {"alpha": 0.25}),
    ],
)
def test_what_is_out_of_range_is_refused(name, settings):
    with pytest.raises(ValidationError):
        params(name, **settings)


def test_class_weights_from_the_command_line():
    words = ["loss.weight=[1, 0.5, 0, 4]", "loss.label_smoothing=0.1"]
    loss = read_config("digits", words, PRESETS, host()).loss
    assert loss.weight == WEIGHT
    expected = cross_entropy(0.1, WEIGHT)
    assert loss.build(CLASSES)(LOGITS, TARGETS).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "weight"), WEIGHTED)
def test_balanced_weights_follow_from_the_class_counts(name, weight):
    loss = params(name, **{weight: "balanced"})
    counts = [6, 0, 1, 3]
    fitted = loss.with_class_counts(counts)
    if name == "bce_with_logits":
        expected = (4 / 6, 1, 9, 7 / 3)
    else:
        targets = np.repeat(range(4), counts)
        of_present = compute_class_weight("balanced", classes=np.unique(targets), y=targets)
        expected = (of_present[0], 0, *of_present[1:])
    assert getattr(fitted, weight) == pytest.approx(expected)
    assert getattr(loss, weight) == "balanced"
    assert_loss_plugin(loss, CLASSES)
    given = params(name, **{weight: expected}) if name != "bce_with_logits" else fitted
    built = [each.build(CLASSES)(LOGITS, TARGETS).item() for each in (fitted, given)]
    assert built[0] == built[1]
    with pytest.raises(ValueError, match=f"{weight}=balanced needs the class counts"):
        loss.build(CLASSES)


@pytest.mark.parametrize(("name", "weight"), WEIGHTED)
def test_weights_that_are_given_stay(name, weight):
    for given in (None, (1.0, 2.0)):
        loss = params(name, **{weight: given})
        assert loss.with_class_counts([1, 5]) == loss


def test_a_word_that_is_no_weight_is_refused():
    with pytest.raises(UserError, match=r"loss\.weight: must be .*balanced.*, not 'balance'"):
        read_config("digits", ["loss.weight=balance"], PRESETS, host())
