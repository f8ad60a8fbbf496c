"""Confidence: the interval of a measured accuracy, and how right a network is to be sure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torchyard.core.data.predictions import Predictions


def wilson_interval(
    correct: npt.ArrayLike, images: npt.ArrayLike, confidence: float = 0.95
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The confidence interval of a share of which `correct` of `images` were observed.

    The score interval of Wilson, "Probable Inference, the Law of Succession, and Statistical
    Inference" (1927). Unlike the normal approximation it stays between 0 and 1 and holds for
    few images.

    Args:
        correct, images: counts, of one shape.
        confidence: between 0 and 1.

    Returns:
        The lower and the upper bound, 0 to 1, in that shape; NaN where there is no image.
    """
    right, count = np.asarray(correct, np.float64), np.asarray(images, np.float64)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = right / count
        centre = share + z**2 / (2 * count)
        half_width = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
        scale = 1 + z**2 / count
        # Exact at both ends, which rounding would exceed.
        low = np.where(right == 0, 0 * count, (centre - half_width) / scale)
        high = np.where(right == count, 1 + 0 * count, (centre + half_width) / scale)
    return np.where(count > 0, low, np.nan), np.where(count > 0, high, np.nan)


@dataclass(frozen=True, eq=False)
class Calibration:
    """How well the confidence of a network agrees with its accuracy.

    Attributes:
        edges: B + 1 bounds of the bins of confidence, from 0 to 1.
        images: B, samples in each bin.
        confidence, accuracy: B, the means of each bin; NaN in an empty one.
        error: the expected calibration error, 0 to 1: the mean distance between confidence
            and accuracy, weighted by the bins' samples.
    """

    edges: npt.NDArray[np.float64]
    images: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    error: float


def fitted_temperature(predictions: Predictions) -> float:
    """What to divide logits by, so that the cross-entropy of these predictions is the least.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (2017), section
    4.2; minimized as scikit-learn's `CalibratedClassifierCV(method="temperature")` does. No
    predicted class changes by it.

    Args:
        predictions: of samples that the network was not trained on.

    Returns:
        Above 0; above 1 for a network that is surer than it should be. 1, which changes nothing,
        where all or none of the predictions are right: the cross-entropy has no least value then.
    """
    from scipy.optimize import minimize_scalar

    right = int((predictions.predicted == predictions.targets).sum())
    if right in (0, len(predictions.targets)):
        return 1.0
    # From the greatest of each row, in float64: exp never overflows.
    shifted = predictions.logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    true = np.take_along_axis(shifted, predictions.targets[:, None], axis=1)[:, 0]

    def loss(log_inverse: float) -> float:
        inverse = np.exp(log_inverse)
        return float((np.log(np.exp(inverse * shifted).sum(axis=1)) - inverse * true).mean())

    found = minimize_scalar(loss, bounds=(-10, 10), method="bounded", options={"xatol": 1e-9})
    return float(np.exp(-found.x))


def at_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """The same with the logits divided, in float32, as the network that is logged does it."""
    return replace(predictions, logits=predictions.logits / np.float32(temperature))


def calibration(predictions: Predictions, bins: int = 15) -> Calibration:
    """Compare confidence with accuracy, in bins of equal width.

    After Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (2017);
    15 is their number of bins.
    """
    confidences = predictions.confidence.astype(np.float64)
    correct = predictions.predicted == predictions.targets
    bin_of = np.minimum((confidences * bins).astype(np.int64), bins - 1)

    def sums(values: npt.NDArray[Any] | None = None) -> npt.NDArray[np.float64]:
        return np.bincount(bin_of, weights=values, minlength=bins).astype(np.float64)

    images = sums()
    with np.errstate(invalid="ignore"):
        confidence, accuracy = sums(confidences) / images, sums(correct) / images
    gaps = np.abs(np.nan_to_num(accuracy - confidence))
    error = float((gaps * images).sum() / max(1, len(confidences)))
    edges = np.linspace(0, 1, bins + 1)
    return Calibration(edges, images.astype(np.int64), confidence, accuracy, error)
