"""Metrics of predictions, overall and class by class; none of it needs torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from torchyard.core.data.predictions import Predictions
from torchyard.core.errors import RunError
from torchyard.core.evaluation.confidence import wilson_interval
from torchyard.core.evaluation.figures import confusion_matrix, standard_figures
from torchyard.core.formatting import percent

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The metrics of a network on one split.

    Attributes:
        figures: by name: `loss`, `accuracy` and what else every run has.
        confusion: int64 K x K, samples by true class (row) and predicted class (column).
        per_class: one row per class, in the order of the class indices, with the columns
            class: its name; images: its test samples; correct: those predicted correctly;
            accuracy: correct / images, which is the recall, NaN without images;
            precision: correct / times predicted, NaN if never predicted;
            f1: 2 correct / (images + times predicted), NaN without either.
    """

    figures: Mapping[str, float]
    confusion: npt.NDArray[np.int64]
    per_class: pd.DataFrame

    @property
    def accuracy(self) -> float:
        """The share of samples predicted correctly, 0 to 1."""
        return self.figures["accuracy"]

    @property
    def cross_entropy(self) -> float:
        """The mean of -log(probability of the true class), in nats."""
        return self.figures["loss"]

    @property
    def further(self) -> list[tuple[str, float]]:
        """The figures that reports list beside loss, accuracy and worst class, with their names."""
        apart = {"loss", "accuracy", "worst_recall"}
        names = {"macro_f1": "macro F1", "top5": "top 5"}
        ours = [(names[key], self.figures[key]) for key in names if key in self.figures]
        others = self.figures.keys() - apart - names.keys()
        return ours + [(key, value) for key, value in self.figures.items() if key in others]

    @property
    def images(self) -> int:
        """How many samples were evaluated."""
        return int(self.confusion.sum())

    @property
    def correct(self) -> int:
        """How many of them were predicted correctly."""
        return int(self.confusion.trace())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy (Wilson), 0 to 1."""
        low, high = wilson_interval(self.correct, self.images)
        return float(low), float(high)

    @property
    def headline(self) -> str:
        """`96.9 % (348 of 359 test samples)`."""
        return f"{percent(self.accuracy)} ({self.correct:,} of {self.images:,} test samples)"

    @property
    def worst_class(self) -> str:
        """The class with the lowest accuracy of those with test images; the first of equals."""
        return str(self.per_class["class"].iloc[int(self.per_class["accuracy"].argmin())])

    def most_confused(self, count: int = 5) -> list[tuple[int, int, int]]:
        """(true class, predicted class, samples), the most frequent mistakes first."""
        mistakes = self.confusion.copy()
        np.fill_diagonal(mistakes, 0)
        order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
        pairs = [divmod(int(index), len(mistakes)) for index in order]
        return [(*pair, int(mistakes[pair])) for pair in pairs if mistakes[pair]]

    def per_class_csv(self) -> str:
        """The table in full precision; an undefined value is an empty field."""
        # This line end makes Python quote a name that has a carriage return, too.
        return self.per_class.to_csv(index=False, lineterminator="\r\n")

    def per_class_json(self) -> str:
        """The table as a list of objects in full precision; an undefined value is null."""
        rows = self.per_class.to_dict("records")
        clean = [{key: None if v != v else v for key, v in row.items()} for row in rows]
        return json.dumps(clean, ensure_ascii=False, allow_nan=False, indent=1)


def evaluate(
    predictions: Predictions,
    classes: Sequence[str],
    figures: Mapping[str, float] = MappingProxyType({}),
) -> Evaluation:
    """Compute the metrics of predictions.

    Args:
        predictions: of N samples, in K classes.
        classes: the K names, in the order of the class indices.
        figures: further ones, such as those of metric plugins.

    Raises:
        RunError: there are more or fewer outputs than names, or a target is out of range.
    """
    import pandas as pd

    targets, width = predictions.targets, len(classes)
    if (outputs := predictions.logits.shape[1]) != width:
        raise RunError(f"The network has {outputs} outputs for {width} classes.")
    if len(targets) and (targets.min() < 0 or targets.max() >= width):
        labels = f"{targets.min()} to {targets.max()}"
        raise RunError(f"The test labels go from {labels}; {width} classes end at {width - 1}.")
    confusion = confusion_matrix(predictions)
    table = pd.DataFrame({"class": pd.Series(list(classes), dtype=object)})
    table["images"] = confusion.sum(axis=1)
    table["correct"] = confusion.diagonal()
    predicted = confusion.sum(axis=0)
    # In pandas 0 / 0 is NaN without a warning, and nothing else here is divided by 0.
    table["accuracy"] = table["correct"] / table["images"]
    table["precision"] = table["correct"] / predicted
    table["f1"] = 2 * table["correct"] / (table["images"] + predicted)
    return Evaluation({**figures, **standard_figures(predictions)}, confusion, table)
