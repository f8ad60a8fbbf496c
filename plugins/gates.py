"""Gates: conditions that a model must meet to become the champion."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from pydantic import Field, PositiveInt

from torchyard import Gate, GateParams, Register, Verdict, hookimpl

if TYPE_CHECKING:
    from torchyard import PredictionTable


class MinAccuracy(GateParams):
    """At least this accuracy on the test split."""

    threshold: float = Field(ge=0, le=1, description="the least accuracy, e.g. 0.9")

    def build(self) -> Gate:
        """Make the gate."""
        threshold = self.threshold

        def judge(candidate: PredictionTable, champion: PredictionTable | None) -> Verdict:
            right = candidate.predictions.predicted == candidate.predictions.targets
            accuracy = float(right.mean())
            return Verdict(
                accuracy >= threshold,
                f"{accuracy:.2%} of {len(right):,} test samples, {threshold:.2%} are required",
                {"accuracy": accuracy},
            )

        return judge


class MinClassRecall(GateParams):
    """At least this recall in every class that has test samples."""

    threshold: float = Field(ge=0, le=1, description="the least recall of any class, e.g. 0.5")

    def build(self) -> Gate:
        """Make the gate."""
        threshold = self.threshold

        def judge(candidate: PredictionTable, champion: PredictionTable | None) -> Verdict:
            from torchyard import evaluate

            result = evaluate(candidate.predictions, candidate.classes)
            recalls = result.per_class.set_index("class")["accuracy"].dropna()
            below = recalls[recalls < threshold].sort_values(kind="stable")
            worst, recall = result.worst_class, float(recalls.min())
            reason = f"{recall:.2%} in the worst class, {worst}; {threshold:.2%} are required"
            if len(below) > 1:
                reason = f"{len(below)} of {len(recalls)} classes are below: {reason}"
            return Verdict(below.empty, reason, {"least_recall": recall})

        return judge


class BeatsChampion(GateParams):
    """More accurate than the champion on the same test samples, by more than chance.

    Without a champion it passes. The test is McNemar's, exact and one-sided, on the samples that
    only one of the two has right (Dietterich, "Approximate Statistical Tests for Comparing
    Supervised Classification Learning Algorithms", 1998). `significance` is what may be spent on
    all that is ever asked of one test set: four fifths of it evenly on the first `asks`, the rest
    on those that follow, less and less, so that it never runs out (alpha spending).
    """

    margin: float = Field(
        0.0, ge=0, lt=1, description="how much more accurate at least, 0.01 is a point"
    )
    significance: float | None = Field(
        0.05,
        gt=0,
        lt=1,
        description="the chance that a model no better than its champion is ever promoted by one "
        "test set; none: any lead is enough",
    )
    asks: PositiveInt | None = Field(
        365,
        description="how often the test set is meant to be asked, which divides `significance`; "
        "none: it is for each time alone",
    )

    def with_ask(self, number: int) -> Self:
        """The same with the part of the significance that this ask may spend."""
        if self.significance is None or self.asks is None:
            return self
        return self.model_copy(update={"significance": self.level(number), "asks": None})

    def level(self, number: int) -> float:
        """The greatest p-value allowed when the test set is asked for the `number`-th time.

        Over all numbers the levels sum to `significance`: N / (k (k - 1)) sums to 1 over k > N.
        """
        assert self.significance is not None
        assert self.asks is not None
        if number <= self.asks:
            return 0.8 * self.significance / self.asks
        return 0.2 * self.significance * self.asks / (number * (number - 1))

    def build(self) -> Gate:
        """Make the gate; it takes the ask for the first one where nobody has told it."""
        if self.asks is not None and self.significance is not None:
            return self.with_ask(1).build()
        margin, significance = self.margin, self.significance

        def judge(candidate: PredictionTable, champion: PredictionTable | None) -> Verdict:
            from torchyard import compare

            if champion is None:
                return Verdict(True, "there was no champion before")
            result = compare(champion, candidate).overall
            # Whole samples are compared: 0.3 - 0.1 is not 0.2.
            ahead = result.only_second - result.only_first
            better = ahead > 0 and ahead >= round(margin * result.images, 6)
            reason = (
                f"{result.second:.2%} against the champion's {result.first:.2%}; "
                f"{result.only_second:,} samples that only it has right, {result.only_first:,} "
                "that only the champion has"
            )
            if margin:
                reason += f"; {margin:.2%} more are required"
            # Of one side: a candidate that is significantly worse is no error to guard against.
            p_value = result.p_value / 2 if ahead > 0 else 1.0
            if significance is not None:
                better = better and p_value <= significance
                reason += f"; p = {p_value:.2g}, where at most {significance:.2g} is allowed"
            return Verdict(
                better,
                reason,
                {
                    "accuracy": result.second,
                    "champion_accuracy": result.first,
                    "difference": result.difference,
                    "low": result.low,
                    "high": result.high,
                    "p_value": p_value,
                },
            )

        return judge


class MinMetric(GateParams):
    """At least this value of a figure of the test split, such as macro_f1 or that of a metric."""

    metric: str = Field(description="accuracy, macro_f1, top5, or a figure of one of `metrics`")
    threshold: float = Field(description="the least value, e.g. 0.9")

    def figures_used(self) -> tuple[str, ...]:
        """The one that is compared."""
        return (self.metric,)

    def build(self) -> Gate:
        """Make the gate."""
        return _limit(self.metric, self.threshold, "least", operator.ge)


class MaxMetric(GateParams):
    """At most this value of a figure of the test split, such as loss or that of a metric."""

    metric: str = Field(description="loss, or a figure of one of `metrics`")
    threshold: float = Field(description="the greatest value, e.g. 0.05")

    def figures_used(self) -> tuple[str, ...]:
        """The one that is compared."""
        return (self.metric,)

    def build(self) -> Gate:
        """Make the gate."""
        return _limit(self.metric, self.threshold, "most", operator.le)


class MaxLeaked(GateParams):
    """At most this share of the test samples that were, exactly or nearly, trained on, too."""

    threshold: float = Field(0.0, ge=0, le=1, description="the greatest share, 0.01 is 1 %")

    def figures_used(self) -> tuple[str, ...]:
        """What the audit of the data set finds, which this asks for."""
        return ("leaked",)

    def build(self) -> Gate:
        """Make the gate."""
        return _limit("leaked", self.threshold, "most", operator.le)


class MaxLabelErrors(GateParams):
    """At most this share of the training labels that are likely wrong."""

    threshold: float = Field(0.0, ge=0, le=1, description="the greatest share, 0.01 is 1 %")

    def figures_used(self) -> tuple[str, ...]:
        """What the audit of the data set finds, which this asks for."""
        return ("label_errors",)

    def build(self) -> Gate:
        """Make the gate."""
        return _limit("label_errors", self.threshold, "most", operator.le)


def _limit(
    metric: str, threshold: float, side: str, passes: Callable[[float, float], bool]
) -> Gate:
    def judge(candidate: PredictionTable, champion: PredictionTable | None) -> Verdict:
        value = candidate.figures.get(metric)
        if value is None:
            return Verdict(False, f"{metric} is not defined for these predictions")
        reason = f"{metric} is {value:.4g}, at {side} {threshold:g} is required"
        return Verdict(passes(value, threshold), reason, {metric: value})

    return judge


@hookimpl
def register_gates(register: Register) -> None:
    register("min_accuracy", MinAccuracy)
    register("min_class_recall", MinClassRecall)
    register("beats_champion", BeatsChampion)
    register("min_metric", MinMetric)
    register("max_metric", MaxMetric)
    register("max_leaked", MaxLeaked)
    register("max_label_errors", MaxLabelErrors)
