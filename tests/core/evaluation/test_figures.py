"""The figures of predictions: against scikit-learn's, with missing classes, from plugins."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from torchyard.core.data.predictions import Predictions
from torchyard.core.errors import RunError
from torchyard.core.evaluation.figures import Figures, standard_figures, standard_names, top_share

LOGITS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 30), st.integers(1, 9)),
    elements=st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0]),
)


@given(logits=LOGITS, seed=st.integers(0, 99))
def test_they_are_those_of_scikit_learn(logits, seed):
    from sklearn import metrics

    count, width = logits.shape
    targets = np.random.default_rng(seed).integers(0, width, count)
    made, predicted = standard_figures(Predictions(logits, targets)), logits.argmax(1)
    labels = list(range(width))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert made["accuracy"] == pytest.approx(metrics.accuracy_score(targets, predicted))
        f1 = metrics.f1_score(targets, predicted, average="macro", zero_division=0)
        assert made["macro_f1"] == pytest.approx(f1)
        recalls = metrics.recall_score(targets, predicted, average=None, labels=np.unique(targets))
        assert made["worst_recall"] == pytest.approx(min(recalls))
        probabilities = Predictions(logits, targets).probabilities
        if width > 1:
            loss = metrics.log_loss(targets, probabilities, labels=labels)
            assert made["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    assert set(made) == set(standard_names(width))


@given(logits=LOGITS, seed=st.integers(0, 99))
def test_the_share_of_the_first_grows_with_their_number_to_one(logits, seed):
    count, width = logits.shape
    targets = np.random.default_rng(seed).integers(0, width, count)
    made = Predictions(logits, targets)
    shares = [top_share(made, k) for k in range(1, width + 1)]
    assert shares[0] == pytest.approx((made.predicted == targets).mean())
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_of_no_sample_nothing_is_defined():
    made = standard_figures(Predictions(np.zeros((0, 7), np.float32), np.zeros(0, np.int64)))
    assert all(math.isnan(value) for value in made.values())


SOME = Predictions(np.eye(3, dtype=np.float32), np.arange(3))


def test_a_metric_is_named_after_its_plugin():
    two = {"a": 1, "b/c": np.float32(2)}
    figures = Figures([("one", lambda *_: 0.5, False), ("two", lambda *_: two, True)])
    made = figures(SOME)
    assert {"one": 0.5, "two/a": 1.0, "two/b/c": 2.0}.items() <= made.items()
    assert not figures.lower_is_better("one")
    assert figures.lower_is_better("two/a")
    assert figures.lower_is_better("loss")


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (lambda logits, targets: "0.5", "metric 'it'.*returns a str, not a number"),
        (lambda logits, targets: np.complex64(1), "returns a complex64, not a number"),
        (lambda logits, targets: {"a": True}, "returns a bool for 'a', not a number"),
        (lambda logits, targets: {"": 1.0}, "names a figure ''"),
        (lambda logits, targets: 1 / 0, "metric 'it': ZeroDivisionError"),
        (lambda logits, targets: (_ for _ in ()).throw(SystemExit(3)), "metric 'it': SystemExit"),
    ],
)
def test_a_metric_that_makes_no_numbers_is_named(metric, reason):
    with pytest.raises(RunError, match=reason):
        Figures([("it", metric, False)])(SOME)


@pytest.mark.parametrize("value", [math.nan, math.inf, -np.float32(math.inf)])
def test_what_is_not_finite_is_not_defined_and_never_the_best(value):
    figures = Figures([("ratio", lambda *_: value, False), ("time", lambda *_: {"s": value}, True)])
    made = figures(SOME)
    for name in ("ratio", "time/s"):
        assert math.isnan(made[name])
        assert not figures.improves(name, made[name], None)


def test_two_figures_of_one_name_are_refused():
    with pytest.raises(RunError, match="makes 'it', which is there already"):
        Figures([("it", lambda *_: 1.0, False)] * 2)(SOME)


def test_a_metric_cannot_change_the_predictions():
    def spoil(logits, targets):
        logits[:], targets[:] = 0, 0
        return 0.0

    given = Predictions(np.eye(3, dtype=np.float32), np.arange(3))
    Figures([("it", spoil, False)])(given)
    assert given.targets.tolist() == [0, 1, 2]
    assert given.logits.sum() == 3


def test_better_is_lower_for_a_loss_and_higher_for_a_share_and_never_nan():
    figures = Figures()
    assert figures.improves("loss", 0.5, None)
    assert figures.improves("loss", 0.4, 0.5)
    assert not figures.improves("loss", 0.6, 0.5)
    assert figures.improves("accuracy", 0.6, 0.5)
    assert not figures.improves("accuracy", 0.5, 0.5)
    assert not figures.improves("accuracy", math.nan, 0.5)
    assert not figures.improves("accuracy", math.nan, None)
