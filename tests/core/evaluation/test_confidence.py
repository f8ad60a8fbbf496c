"""Intervals and calibration, against other programs and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchyard.core.data.predictions import Predictions
from torchyard.core.evaluation.confidence import (
    at_temperature,
    calibration,
    fitted_temperature,
    wilson_interval,
)
from torchyard.core.evaluation.figures import cross_entropy


@given(st.integers(1, 5000), st.floats(0, 1), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
@settings(max_examples=80, deadline=None)
def test_the_interval_is_scipys_wilson_interval(count, share, confidence) -> None:
    from scipy.stats import binomtest

    right = round(share * count)
    low, high = wilson_interval(right, count, confidence)
    expected = binomtest(right, count).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= right / count <= high <= 1


def test_without_an_image_nothing_is_known() -> None:
    low, high = wilson_interval([0, 3], [0, 3])
    assert np.isnan([low[0], high[0]]).all()
    assert 0.4 < low[1] < high[1] == 1


def of_confidence(sure: list[float], right: list[bool]) -> Predictions:
    """Two classes; the first is predicted, with these probabilities."""
    share = np.asarray(sure)
    logits = np.stack([np.log(share), np.log1p(-share)], axis=1).astype(np.float32)
    return Predictions(logits, np.where(right, 0, 1))


def test_the_error_is_the_weighted_gap_of_the_bins() -> None:
    made = of_confidence([0.9, 0.9, 0.9, 0.9, 0.6, 0.6], [True, True, False, False, True, True])
    found = calibration(made, bins=10)
    assert found.images.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 4] or found.images.sum() == 6
    assert found.error == pytest.approx((4 * 0.4 + 2 * 0.4) / 6, abs=1e-6)
    held = found.images > 0
    assert np.isnan(found.accuracy[~held]).all()
    assert found.accuracy[held].tolist() == [1.0, 0.5]


def test_one_that_is_right_as_often_as_it_says_has_next_to_no_error() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 200_000)
    right = rng.random(200_000) < sure
    assert calibration(of_confidence(sure, right)).error < 0.005
    assert calibration(of_confidence(sure, np.ones(200_000, bool))).error == pytest.approx(
        0.25, abs=0.005
    )


def test_the_greatest_confidence_has_a_bin() -> None:
    made = Predictions(np.array([[1000.0, 0.0]], np.float32), np.array([0]))
    found = calibration(made)
    assert found.images[-1] == 1
    assert found.error == 0


def noisy(samples: int, classes: int, sureness: float, seed: int = 0) -> Predictions:
    """Logits that are right about as often as their softmax says, times a factor."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (samples, classes))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = np.array([rng.choice(classes, p=row) for row in shares])
    return Predictions((sureness * logits).astype(np.float32), targets)


@pytest.mark.parametrize(("classes", "sureness"), [(2, 3.0), (10, 2.5), (10, 0.4), (3, 1.0)])
def test_the_temperature_is_scikit_learns(classes, sureness) -> None:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Logits(ClassifierMixin, BaseEstimator):
        """Its samples are its logits."""

        def fit(self, samples, targets):
            self.classes_ = np.arange(classes)
            return self

        def decision_function(self, samples):
            return samples[:, 1] - samples[:, 0] if classes == 2 else samples

        def predict(self, samples):
            return samples.argmax(axis=1)

    made = noisy(600, classes, sureness)
    # In double precision, as here; their halves of a binary difference are the same softmax.
    logits = made.logits.astype(np.float64)
    model = FrozenEstimator(Logits().fit(logits, made.targets))
    theirs = CalibratedClassifierCV(model, method="temperature").fit(logits, made.targets)
    inverse = theirs.calibrated_classifiers_[0].calibrators[0].beta_
    # To them the logits of two classes are (-x, x), of which the difference is twice ours.
    expected = 1 / float(np.squeeze(inverse)) / (2 if classes == 2 else 1)
    found = fitted_temperature(made)
    assert found == pytest.approx(expected, rel=1e-4)
    assert found == pytest.approx(sureness, rel=0.2)
    ours = at_temperature(made, found)
    shares = theirs.predict_proba(logits)
    np.testing.assert_allclose(ours.probabilities, shares, atol=1e-4)


def test_the_temperature_mends_the_calibration_of_other_samples() -> None:
    validation, test = noisy(2000, 10, 3.0), noisy(4000, 10, 3.0, seed=1)
    mended = at_temperature(test, fitted_temperature(validation))
    assert calibration(test).error > 0.2
    assert calibration(mended).error < 0.03
    assert cross_entropy(mended) < cross_entropy(test)
    assert (mended.predicted == test.predicted).all()


def test_what_is_all_right_or_all_wrong_fits_no_temperature() -> None:
    assert fitted_temperature(of_confidence([0.9, 0.8], [True, True])) == 1
    assert fitted_temperature(of_confidence([0.9, 0.8], [False, False])) == 1
