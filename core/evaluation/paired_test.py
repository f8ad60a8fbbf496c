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

if TYPE_CHECKING:
    import pandas as pd

    from torchyard.core.data.predictions import PredictionTable

SHOWN_DIGEST = 12


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
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two runs on the test samples that both have predicted.

    The interval is the percentile interval of the paired bootstrap: samples are drawn with
    replacement, both predictions of each together (Efron and Tibshirani, "An Introduction to
    the Bootstrap", 1993, chapter 13). It covers the choice of the test samples, not that of
    the seed: another seed trains other weights. The test is McNemar's ("Note on the sampling
    error of the difference between correlated proportions or percentages", 1947), exact, with
    the binomial distribution; the adjustment for many classes is that of Holm ("A simple
    sequentially rejective multiple test procedure", 1979).

    Args:
        first, second: the predictions of two runs.
        confidence: of the intervals, between 0 and 1.
        resamples: how often the samples are drawn anew.
        seed: of the resampling.

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
    columns = _differences(counts, confidence, resamples, np.random.default_rng(seed))
    overall = Difference(**{name: values[0].item() for name, values in columns.items()})
    table = pd.DataFrame({"class": pd.Series(list(first.classes), dtype=object)})
    table = table.assign(**{name: values[1:] for name, values in columns.items()})
    table["p_adjusted"] = _holm(table["p_value"].to_numpy())
    return Comparison(overall, table, confidence)


def _differences(
    counts: npt.NDArray[np.int64], confidence: float, resamples: int, generator: np.random.Generator
) -> dict[str, npt.NDArray[Any]]:
    """The fields of `Difference`, with one value per row of outcomes."""
    from scipy.special import bdtr

    images = counts.sum(axis=1)
    both, only_first, only_second, _ = counts.T
    bounds = np.full((2, len(counts)), np.nan)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    for row in np.flatnonzero(images):
        # To draw samples with replacement is to draw how many there are of each outcome.
        drawn = generator.multinomial(images[row], counts[row] / images[row], size=resamples)
        bounds[:, row] = np.quantile((drawn[:, 2] - drawn[:, 1]) / images[row], tails)
    with np.errstate(invalid="ignore"):
        shares = [part / images for part in (both + only_first, both + only_second)]
        difference = (only_second - only_first) / images
    discordant = only_first + only_second
    # Twice the smaller tail; in a draw the two overlap.
    tail = bdtr(np.minimum(only_first, only_second).astype(float), discordant, 0.5)
    return {
        "images": images,
        "first": shares[0],
        "second": shares[1],
        "difference": difference,
        "low": bounds[0],
        "high": bounds[1],
        "only_first": only_first,
        "only_second": only_second,
        "p_value": np.where(images > 0, np.minimum(1.0, 2 * tail), np.nan),
    }


def _holm(p_values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Adjusted p-values; NaN, which is not a test, stays."""
    adjusted = p_values.copy()
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted
