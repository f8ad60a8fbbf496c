"""Sets of classes that hold the true one: by hand, and how often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchyard.core.data.predictions import Predictions
from torchyard.core.errors import RunError
from torchyard.core.evaluation.confidence import calibration
from torchyard.core.evaluation.conformal import Confidence, class_scores, true_scores


def of_shares(rows, targets) -> Predictions:
    return Predictions(np.log(np.array(rows, np.float32)), np.array(targets))


def test_a_score_is_the_probability_of_what_is_more_probable() -> None:
    shares = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]], np.float32)
    np.testing.assert_allclose(class_scores(shares), [[0.8, 0, 0.5], [0, 0.4, 0.8]], atol=1e-6)


def test_sets_by_hand() -> None:
    """Four samples of validation; their scores are 0, 0.5, 0.6 and 0.9."""
    validation = of_shares(
        [[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.6, 0.3, 0.1], [0.6, 0.3, 0.1]], [0, 1, 1, 2]
    )
    np.testing.assert_allclose(true_scores(validation), [0, 0.5, 0.6, 0.9], atol=1e-6)
    found, test = Confidence.fit(validation, validation, temperature=False)
    assert test is validation
    assert found.scores == pytest.approx((0, 0.5, 0.6, 0.9), abs=2e-6)
    shares = np.array([[0.55, 0.3, 0.15], [0.97, 0.02, 0.01], [0.3, 0.35, 0.35]], np.float32)
    # Of five, with the new one: the least score that two of five do not exceed is 0.5, ...
    expected = {
        0.2: [[1, 0, 0], [1, 0, 0], [0, 1, 0]],  # 0
        0.4: [[1, 0, 0], [1, 0, 0], [0, 1, 1]],  # 0.5
        0.6: [[1, 1, 0], [1, 0, 0], [0, 1, 1]],  # 0.6
        0.8: [[1, 1, 1], [1, 0, 0], [1, 1, 1]],  # 0.9
        0.9: [[1, 1, 1]] * 3,  # four samples cannot say
    }
    for coverage, rows in expected.items():
        assert found.sets(shares, coverage).astype(int).tolist() == rows, coverage


@pytest.mark.parametrize("coverage", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("temperature", [False, True])
def test_the_true_class_is_in_the_set_as_often_as_is_asked(coverage, temperature) -> None:
    rng, held, sizes = np.random.default_rng(1), [], []
    for _ in range(60):
        logits = rng.normal(0, 1, (700, 6))
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        targets = (rng.random((700, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(max=5)
        made = Predictions((4 * logits).astype(np.float32), targets)  # far too sure
        parts = [
            Predictions(made.logits[part], targets[part]) for part in (slice(200), slice(200, None))
        ]
        found, test = Confidence.fit(*parts, temperature=temperature)
        sets = found.sets(test.probabilities, coverage)
        held.append(sets[np.arange(500), test.targets].mean())
        sizes.append(sets.sum(axis=1).mean())
    # At least, and hardly more: only the most probable class has a set that it need not be in.
    assert coverage - 0.01 <= np.mean(held) <= coverage + 0.03
    assert 1 <= np.mean(sizes) < 6


@given(st.integers(1, 40), st.integers(2, 6), st.floats(0.01, 0.99), st.integers(0, 9))
def test_no_set_is_empty_and_more_coverage_takes_nothing_away(count, classes, coverage, seed):
    rng = np.random.default_rng(seed)
    made = Predictions(
        rng.normal(0, 3, (count, classes)).astype(np.float32), rng.integers(0, classes, count)
    )
    found, _ = Confidence.fit(made, made, temperature=False)
    sets = found.sets(made.probabilities, coverage)
    assert sets[np.arange(count), made.predicted].all()
    more = found.sets(made.probabilities, (1 + coverage) / 2)
    assert (more | ~sets).all()


def test_it_is_read_as_it_was_written(tmp_path) -> None:
    rng = np.random.default_rng(0)
    made = Predictions(rng.normal(0, 5, (50, 3)).astype(np.float32), rng.integers(0, 3, 50))
    found, test = Confidence.fit(made, made, temperature=True)
    assert found.metrics == {
        "test/calibration_error": calibration(test).error,
        "test/calibration_error_before": calibration(made).error,
        "calibration/temperature": found.temperature,
    }
    found.write(tmp_path / "confidence.json")
    assert Confidence.read(tmp_path / "confidence.json") == found
    for text in ("", "[]", '{"scores": 3}', '{"scores": ["a"]}', '{"scores": [], "more": 1}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(RunError, match="is damaged"):
            Confidence.read(tmp_path / "bad.json")
