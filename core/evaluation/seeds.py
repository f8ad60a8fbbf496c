"""Several seeds of one configuration: the mean accuracy, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchyard.core.errors import UserError
from torchyard.core.evaluation.confidence import wilson_interval

CONFIDENCE = 0.95  # of the intervals


@dataclass(frozen=True)
class SeedSummary:
    """The accuracy of a configuration, over its seeds.

    Attributes:
        seeds, images: how many there are.
        mean: of the seeds' accuracies, 0 to 1.
        spread: their standard deviation.
        over_seeds: the interval of the mean if other seeds had been drawn, and the same test
            samples: Student's t.
        over_both: the interval if other seeds and other test samples had been drawn.
    """

    seeds: int
    images: int
    mean: float
    spread: float
    over_seeds: tuple[float, float]
    over_both: tuple[float, float]


def over_seeds(correct: npt.NDArray[np.bool_]) -> SeedSummary:
    """Summarize which samples each seed predicts correctly.

    Every seed predicts the same samples, so the two are crossed random effects (Searle, Casella
    and McCulloch, "Variance Components", 1992, chapter 4): whether a seed has a sample right is
    the mean + an effect of the seed + an effect of the sample + a rest. The variance of the mean
    is that of the seeds divided by their number, + that of the samples divided by theirs, + that
    of the rest divided by both; each is estimated from the mean squares of the analysis of
    variance, none below 0. The degrees of freedom of their sum are those of Satterthwaite ("An
    approximate distribution of estimates of variance components", 1946). Where every seed has
    every sample alike, no variance can be estimated: the interval is Wilson's, of the samples.

    Args:
        correct: S x N, seeds by samples; two or more of each.

    Raises:
        UserError: there are fewer.
    """
    from scipy.stats import t as student

    seeds, images = correct.shape
    if seeds < 2 or images < 2:
        raise UserError(f"an interval needs 2 seeds and 2 samples, not {seeds} and {images}")
    values = correct.astype(np.float64)
    mean = float(values.mean())
    of_seeds, of_samples = values.mean(axis=1), values.mean(axis=0)
    rest = values - of_seeds[:, None] - of_samples + mean
    freedom = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    squares = np.array([images * of_seeds.var(ddof=1), seeds * of_samples.var(ddof=1), 0.0])
    squares[2] = (rest**2).sum() / freedom[2]
    # A component below 0 is 0: its mean square is then taken to be that of the rest.
    raised = np.maximum(squares, squares[2])
    total = raised[0] + raised[1] - raised[2]

    def interval(variance: float, degrees: float) -> tuple[float, float]:
        half = float(student.ppf((1 + CONFIDENCE) / 2, degrees)) * variance**0.5
        return max(0.0, mean - half), min(1.0, mean + half)

    spread = float(of_seeds.std(ddof=1))
    if total > 0:
        degrees = total**2 / float((raised**2 / freedom).sum())
        both = interval(total / (seeds * images), degrees)
    else:
        low, high = wilson_interval(mean * images, images, CONFIDENCE)
        both = float(low), float(high)
    return SeedSummary(seeds, images, mean, spread, interval(spread**2 / seeds, seeds - 1), both)
