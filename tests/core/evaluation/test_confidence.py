"""Intervals and calibration, against other programs and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchyard.core.data.predictions import Predictions
from torchyard.core.evaluation.confidence import calibration, wilson_interval


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
