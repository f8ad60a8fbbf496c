"""Whether one run is better than another: their difference on the same test samples.

Two runs mostly agree on which samples they predict correctly, so that the difference of their
accuracies has a narrower interval than either accuracy. Only samples that exactly one of the
two predicts correctly count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from torchyard.core.errors import UserError
from torchyard.core.evaluation.confidence import wilson_interval

if TYPE_CHECKING:
    import pandas as pd

    from torchyard.core.data.predictions import PredictionTable

SHOWN_DIGEST = 12
SIGNIFICANCE = 0.05  # of a p-value, where reports say that two runs differ


@dataclass(frozen=True)
class Difference:
    """The accuracy of two runs on the same samples.

    Attributes:
        images: how many samples there are.
        first, second: the accuracies, 0 to 1; NaN without a sample, as is all that follows.
        difference: second - first: above 0 the second is better.
        low, high: the confidence interval of the difference.
        only_first, only_second: samples that this run alone predicts correctly.
        p_value: of the exact McNemar test: the probability that two equally good runs differ
            on these samples at least as much; 1 where no sample distinguishes them.
    """

    images: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    only_first: int
    only_second: int
    p_value: float

    @property
    def told_apart(self) -> bool:
        """Whether it is more than chance, as reports say it."""
        return self.p_value < SIGNIFICANCE


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two runs, compared overall and class by class.

    Attributes:
        overall: over all samples.
        per_class: one row per class, in the order of the class indices: the column class and
            those of `Difference`; then p_adjusted, Holm's p-value, as with many classes some
            differ by chance.
        confidence: of the intervals, 0 to 1.
    """

    overall: Difference
    per_class: pd.DataFrame
    confidence: float


def compare(
    first: PredictionTable,
    second: PredictionTable,
    *,
    confidence: float = 0.95,
) -> Comparison:
    """Compare two runs on the test samples that both have predicted.

    Both interval and p-value look at the discordant samples, those that exactly one of the two has
    right. The share of them that the second has right is binomial. The p-value is of McNemar's
    test ("Note on the sampling error of the difference between correlated proportions or
    percentages", 1947), exact. The interval of that share is Clopper's and Pearson's ("The use of
    confidence or fiducial limits illustrated in the case of the binomial", 1934), the same test
    inverted; joined with Wilson's interval of how many discordant samples there are, it gives that
    of the difference (after Zou and Donner, "Construction of confidence limits about effect
    measures", 2008), which leaves out 0 exactly where p < 1 - confidence. They cover the choice of
    the test samples, not that of the seed: another seed trains other weights. The adjustment for
    many classes is that of Holm ("A simple sequentially rejective multiple test procedure", 1979).

    Args:
        first, second: the predictions of two runs.
        confidence: of the intervals, between 0 and 1.

    Raises:
        UserError: the runs were tested on different samples, or their classes differ.
    """
    import pandas as pd

    if first.test_digest != second.test_digest:
        tested = " and ".join(
            f"{table.run} on {table.dataset} ({len(table.predictions.targets):,} samples, "
            f"digest {table.test_digest[:SHOWN_DIGEST]})"
            for table in (first, second)
        )
        raise UserError(f"The runs were tested on different samples, which do not pair: {tested}")
    targets = first.predictions.targets
    wrong = [table.predictions.predicted != targets for table in (first, second)]
    # Of each class: how many samples both have right, the first alone, the second alone, neither.
    outcomes, size = 4 * targets + 2 * wrong[0] + wrong[1], (len(first.classes), 4)
    by_class = np.bincount(outcomes, minlength=math.prod(size)).reshape(size)
    counts = np.vstack([by_class.sum(axis=0), by_class])
    columns = _differences(counts, confidence)
    overall = Difference(**{name: values[0].item() for name, values in columns.items()})
    table = pd.DataFrame({"class": pd.Series(list(first.classes), dtype=object)})
    table = table.assign(**{name: values[1:] for name, values in columns.items()})
    table["p_adjusted"] = _holm(table["p_value"].to_numpy())
    return Comparison(overall, table, confidence)


def _differences(counts: npt.NDArray[np.int64], confidence: float) -> dict[str, npt.NDArray[Any]]:
    """The fields of `Difference`, with one value per row of outcomes."""
    from scipy.special import bdtr

    images = counts.sum(axis=1)
    both, only_first, only_second, _ = counts.T
    with np.errstate(invalid="ignore"):
        shares = [part / images for part in (both + only_first, both + only_second)]
        difference = (only_second - only_first) / images
    discordant = only_first + only_second
    # Twice the smaller tail; in a draw the two overlap.
    tail = bdtr(np.minimum(only_first, only_second).astype(float), discordant, 0.5)
    low = _lower_bound(only_first, only_second, images, confidence)
    high = -_lower_bound(only_second, only_first, images, confidence)
    return {
        "images": images,
        "first": shares[0],
        "second": shares[1],
        "difference": difference,
        "low": low,
        "high": high,
        "only_first": only_first,
        "only_second": only_second,
        "p_value": np.where(images > 0, np.minimum(1.0, 2 * tail), np.nan),
    }


def _lower_bound(
    behind: npt.NDArray[np.int64],
    ahead: npt.NDArray[np.int64],
    images: npt.NDArray[np.int64],
    confidence: float,
) -> npt.NDArray[np.float64]:
    """The least difference: how far the discordant samples lean ahead, times their share.

    Where that is away from 0, the relative distances of the two factors' bounds are added up as
    squares, which leaves the sign to the first factor.
    """
    from scipy.special import betaincinv

    discordant = behind + ahead
    few, many = wilson_interval(discordant, images, confidence)
    # Clopper's and Pearson's lower bound of the share that is ahead.
    least_share = betaincinv(np.maximum(ahead, 1), behind + 1.0, (1 - confidence) / 2)
    least = 2 * np.where(ahead > 0, least_share, 0.0) - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        share, lean = discordant / images, (ahead - behind) / discordant
        distances = np.log(np.abs(lean / least))
        nearer = np.exp(-np.hypot(distances, np.log(share / few)))
        farther = np.exp(np.hypot(distances, np.log(many / share)))
        bound = np.where(least > 0, lean * share * nearer, least * share)
        bound = np.where(lean < 0, lean * share * farther, bound)
    return np.where(discordant > 0, bound, -many)


def _holm(p_values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Adjusted p-values; NaN, which is not a test, stays."""
    adjusted = p_values.copy()
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted
