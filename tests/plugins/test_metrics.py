"""The built-in metrics: what the kit asks for, and scikit-learn's values."""

import numpy as np
import pytest
from sklearn import metrics as reference

from torchyard.plugins.metrics import (
    ROCAUC,
    BalancedAccuracy,
    ExpectedCalibrationError,
    MatthewsCorrelation,
    TopK,
)
from torchyard.testing import assert_metric_plugin

CLASSES = [str(index) for index in range(6)]


@pytest.fixture
def some():
    generator = np.random.default_rng(0)
    targets = generator.integers(0, 6, 200)
    logits = generator.standard_normal((200, 6), dtype=np.float32)
    logits[np.arange(200), targets] += 1
    return logits, targets


@pytest.mark.parametrize(
    "params",
    [TopK(k=3), BalancedAccuracy(), ROCAUC(), MatthewsCorrelation(), ExpectedCalibrationError()],
)
def test_they_do_what_a_metric_must(params):
    assert_metric_plugin(params)
    assert_metric_plugin(params, num_classes=4)


def test_top_k_is_scikit_learns(some):
    logits, targets = some
    expected = reference.top_k_accuracy_score(targets, logits, k=2)
    assert TopK(k=2).build(CLASSES)(logits, targets) == {"2": pytest.approx(expected)}


def test_top_k_of_too_few_classes_is_refused():
    with pytest.raises(ValueError, match="k=5 must be less than the number of classes, 5"):
        TopK().build(CLASSES[:5])


def test_the_area_is_the_mean_over_the_classes(some):
    logits, targets = some
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = reference.roc_auc_score(targets, probabilities, multi_class="ovr")
    assert ROCAUC().build(CLASSES)(logits, targets) == pytest.approx(expected, abs=1e-6)
    assert np.isnan(ROCAUC().build(CLASSES)(logits[:5], np.zeros(5, np.int64)))
