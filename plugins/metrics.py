"""Metrics: figures of predictions beside those that every run has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from torchyard import Metric, MetricParams, Register, hookimpl

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@contextmanager
def quiet() -> Iterator[None]:
    """Keep scikit-learn from warning of classes that have no sample, or are never predicted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class TopK(MetricParams):
    """Share of samples whose class is among the k likeliest (sklearn top_k_accuracy_score)."""

    k: PositiveInt = Field(5, description="how many classes may be named; the figure is `top_k/5`")

    def build(self, classes: Sequence[str]) -> Metric:
        """Make the metric; there must be more than k classes."""
        k = self.k
        if k >= len(classes):
            raise ValueError(f"k={k} must be less than the number of classes, {len(classes)}")

        def share(
            logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
        ) -> dict[str, float]:
            from torchyard import Predictions, top_share

            return {str(k): top_share(Predictions(logits, targets), k)}

        return share


class BalancedAccuracy(MetricParams):
    """Mean recall of the classes that have samples (sklearn balanced_accuracy_score)."""

    def build(self, classes: Sequence[str]) -> Metric:
        """Make the metric."""

        def mean_recall(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> float:
            from sklearn.metrics import balanced_accuracy_score

            with quiet():
                return float(balanced_accuracy_score(targets, logits.argmax(1)))

        return mean_recall


class ROCAUC(MetricParams):
    """Area under the ROC curve, the mean of one class against the rest (sklearn roc_auc_score).

    Classes without samples, or with all of them, are left out.
    """

    def build(self, classes: Sequence[str]) -> Metric:
        """Make the metric."""

        def area(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> float:
            import numpy as np
            from sklearn.metrics import roc_auc_score

            from torchyard import Predictions

            probabilities = Predictions(logits, targets).probabilities
            there = [c for c in range(logits.shape[1]) if 0 < (targets == c).sum() < len(targets)]
            if not there:
                return np.nan
            areas = [roc_auc_score(targets == c, probabilities[:, c]) for c in there]
            return float(np.mean(areas))

        return area


class MatthewsCorrelation(MetricParams):
    """Correlation of predicted and true classes, -1 to 1 (sklearn matthews_corrcoef)."""

    def build(self, classes: Sequence[str]) -> Metric:
        """Make the metric."""

        def correlation(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> float:
            from sklearn.metrics import matthews_corrcoef

            with quiet():
                return float(matthews_corrcoef(targets, logits.argmax(1)))

        return correlation


class ExpectedCalibrationError(MetricParams):
    """Mean distance of confidence and accuracy in bins of confidence, weighted by their samples.

    Guo et al., "On Calibration of Modern Neural Networks", arXiv:1706.04599. Lower is better.
    """

    lower_is_better = True

    bins: PositiveInt = Field(15, description="of equal width")

    def build(self, classes: Sequence[str]) -> Metric:
        """Make the metric."""
        bins = self.bins

        def error(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> float:
            from torchyard import Predictions, calibration

            return calibration(Predictions(logits, targets), bins).error

        return error


@hookimpl
def register_metrics(register: Register) -> None:
    register("top_k", TopK)
    register("balanced_accuracy", BalancedAccuracy)
    register("roc_auc", ROCAUC)
    register("matthews_correlation", MatthewsCorrelation)
    register("expected_calibration_error", ExpectedCalibrationError)
