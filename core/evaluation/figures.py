"""The figures of an evaluation by name: those of every run, and those of metric plugins.

Neither torch nor pandas is needed, so that a validation costs little more than its predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from torchyard.core.config.schema import LOWER_IS_BETTER, STANDARD_FIGURES
from torchyard.core.data.predictions import Predictions, shifted_exponentials
from torchyard.core.errors import RunError
from torchyard.core.hosting.containment import contained
from torchyard.core.hosting.params import Metric, MetricParams

TOP = 5  # how many classes `top5` looks at


def confusion_matrix(predictions: Predictions) -> npt.NDArray[np.int64]:
    """int64 K x K: samples by true class (row) and predicted class (column)."""
    width = predictions.logits.shape[1]
    flat = np.bincount(predictions.targets * width + predictions.predicted, minlength=width * width)
    return flat.astype(np.int64, copy=False).reshape(width, width)


def cross_entropy(predictions: Predictions) -> float:
    """The mean of -log(probability of the true class), in nats; NaN without samples."""
    logits, targets = predictions.logits, predictions.targets
    true_logit = np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    # float64 only from the sum on: N x K is large, N is not.
    totals = shifted_exponentials(logits).sum(axis=1, dtype=np.float64)
    losses = np.log(totals) + (logits.max(axis=1).astype(np.float64) - true_logit)
    return float(losses.sum() / (len(targets) or math.nan))


def top_share(predictions: Predictions, count: int) -> float:
    """The share of samples whose true class is among the `count` with the greatest logits.

    Of equal logits the first is the greater, as in `Predictions.predicted`.
    """
    logits, targets = predictions.logits, predictions.targets[:, None]
    true_logit = np.take_along_axis(logits, targets, axis=1)
    ahead = (logits > true_logit).sum(axis=1)
    ahead += ((logits == true_logit) & (np.arange(logits.shape[1]) < targets)).sum(axis=1)
    return float((ahead < count).sum() / (len(targets) or math.nan))


def standard_names(classes: int) -> list[str]:
    """The names of the figures that a run with so many classes has."""
    return [name for name in STANDARD_FIGURES if name != "top5" or classes > TOP]


def standard_figures(predictions: Predictions) -> dict[str, float]:
    """Loss, accuracy, macro F1, the worst class's recall and, with more than five classes, top 5.

    The macro F1 is the mean over the classes that are there or were predicted, as scikit-learn's.
    """
    confusion = confusion_matrix(predictions)
    right, images = confusion.diagonal(), confusion.sum(axis=1)
    either = images + confusion.sum(axis=0)
    there, used = images > 0, either > 0
    figures = {
        "loss": cross_entropy(predictions),
        "accuracy": float(right.sum() / (images.sum() or math.nan)),
        "macro_f1": float((2 * right[used] / either[used]).mean()) if used.any() else math.nan,
        "worst_recall": float((right[there] / images[there]).min()) if there.any() else math.nan,
    }
    if len(confusion) > TOP:
        figures["top5"] = top_share(predictions, TOP)
    return figures


@dataclass(frozen=True)
class Figures:
    """What is computed of predictions.

    Attributes:
        metrics: what metric plugins built, with the plugin's name and whether lower is better.
    """

    metrics: Sequence[tuple[str, Metric, bool]] = ()

    @classmethod
    def build(cls, plugins: Sequence[tuple[str, MetricParams]], classes: Sequence[str]) -> Figures:
        """Those of every run, and those of the plugins."""
        return cls([(n, params.build(classes), params.lower_is_better) for n, params in plugins])

    def __call__(self, predictions: Predictions) -> dict[str, float]:
        """The figures by their names; NaN for one that is not defined.

        Raises:
            RunError: a plugin raised, or its figures are not usable.
        """
        figures = standard_figures(predictions)
        for name, metric, _ in self.metrics:
            try:
                made = figures_of(name, metric, predictions)
                if twice := sorted(made.keys() & figures):
                    raise ValueError(f"makes '{twice[0]}', which is there already")
            except Exception as error:
                raise RunError(f"metric '{name}': {type(error).__name__}: {error}") from error
            figures |= made
        return figures

    def lower_is_better(self, figure: str) -> bool:
        """Whether the lower of two values of a figure is the better one."""
        of_plugins = (
            lower
            for name, _, lower in self.metrics
            if figure == name or figure.startswith(f"{name}/")
        )
        return figure in LOWER_IS_BETTER or next(of_plugins, False)

    def improves(self, figure: str, value: float, best: float | None) -> bool:
        """Whether a value of a figure is better than the best so far; NaN never is."""
        if best is None:
            return not math.isnan(value)
        return value < best if self.lower_is_better(figure) else value > best


def figures_of(name: str, metric: Metric, predictions: Predictions) -> dict[str, float]:
    """What the metric of a plugin makes of predictions, by name; NaN for what is not finite.

    Raises:
        ValueError: it is no number, and no mapping of numbers by names.
    """
    with contained():  # copies: what it does to them is nobody else's
        made = metric(predictions.logits.copy(), predictions.targets.copy())
    if not isinstance(made, Mapping):
        return {name: _number(made, "")}
    figures = {}
    for key, value in made.items():
        if not (isinstance(key, str) and key and all(part.strip() for part in key.split("/"))):
            raise ValueError(f"names a figure {key!r}: a name is a text")
        figures[f"{name}/{key}"] = _number(value, f" for '{key}'")
    return figures


def _number(value: object, of: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"returns a {type(value).__name__}{of}, not a number")
    number = float(value)
    return number if math.isfinite(number) else math.nan  # an infinite one would stay the best
