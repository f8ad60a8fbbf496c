"""Runs side by side: how their settings and results differ, and the page that shows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from torchyard.core.errors import RunError, UserError
from torchyard.core.evaluation.metrics import Evaluation, evaluate
from torchyard.core.evaluation.paired_test import Comparison, compare
from torchyard.core.formatting import UNKNOWN, points
from torchyard.core.report.page import render
from torchyard.core.report.plots import Curves, accuracy_cost_figure, learning_curves, svg
from torchyard.core.tracking.lookup import recorded_predictions

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from torchyard.core.data.predictions import PredictionTable

CURVES = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
COST = ("time/train_seconds", "test/accuracy")
SIGNIFICANCE = 0.05
# The metric of each row of results.
RESULTS = {
    "test loss": "test/loss",
    "validation loss": "best/val/loss",
    "worst class": "test/worst_recall",
    "macro F1": "test/macro_f1",
    "epochs": "train/epochs",
    "parameters": "train/parameters",
    "training, s": "time/train_seconds",
    "whole run, s": "time/total_seconds",
    "images/s": "train/mean_images_per_second",
    "peak memory, MiB": "system/peak_memory_mib",
}


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        label: its name, with its id where another has the same name.
        run: as MLflow has it.
        curves: of its training.
        table, result: its predictions and their metrics; None where none are recorded.
        difference: to the first run; None for the first itself, and where they do not pair.
        remark: why there is no difference, or no predictions; else empty.
    """

    label: str
    run: Run
    curves: Curves
    table: PredictionTable | None
    result: Evaluation | None
    difference: Comparison | None
    remark: str

    @property
    def placement(self) -> str:
        """The device it was trained on, and the precision of the forward pass there."""
        tags = self.run.data.tags
        return ", ".join(tags[key] for key in ("device", "precision") if key in tags) or UNKNOWN

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy; NaN without predictions."""
        return self.result.interval if self.result else (np.nan, np.nan)


def compare_runs(client: MlflowClient, runs: Sequence[Run]) -> list[ComparedRun]:
    """Read what is recorded of the runs, and compare each with the first.

    A run of other test data, or without predictions, is included with a remark.
    """
    occurrences = Counter(run.info.run_name for run in runs)
    compared: list[ComparedRun] = []
    for run in runs:
        label, table, result, difference, remark = run.info.run_name, None, None, None, ""
        if occurrences[label] > 1:
            label = f"{label} {run.info.run_id[:8]}"
        try:
            table = recorded_predictions(client, run)
            result = evaluate(table.predictions, table.classes)
            if compared and compared[0].table is not None:
                difference = compare(compared[0].table, table)
        except (UserError, RunError) as error:
            remark = str(error)
        curves = {key: _history(client, run, key) for key in CURVES}
        compared.append(ComparedRun(label, run, curves, table, result, difference, remark))
    return compared


def _history(client: MlflowClient, run: Run, key: str) -> list[tuple[int, float]]:
    if key not in run.data.metrics:
        return []
    history = client.get_metric_history(run.info.run_id, key)
    return sorted((metric.step, metric.value) for metric in history)


def settings_that_differ(compared: Sequence[ComparedRun]) -> pd.DataFrame:
    """One row per setting that is not the same in all, one column per run; None where unset."""
    import pandas as pd

    columns = {each.label: pd.Series(each.run.data.params, dtype=object) for each in compared}
    table = pd.DataFrame(columns).sort_index()
    return table[table.nunique(axis=1, dropna=False) > 1].replace(np.nan, None)


def results(compared: Sequence[ComparedRun]) -> pd.DataFrame:
    """One row per metric of `RESULTS` that a run has, one column per run; NaN where it has none."""
    import pandas as pd

    columns = {each.label: pd.Series(each.run.data.metrics, dtype=float) for each in compared}
    table = pd.DataFrame(columns).reindex(list(RESULTS.values())).set_axis(list(RESULTS))
    return table.dropna(how="all")


@dataclass(frozen=True)
class ClassCell:
    """The accuracy of one class in one run, and its difference to the first run's, if any.

    The precision is the share of the samples predicted as this class that are of it.
    """

    accuracy: float
    precision: float
    difference: float | None = None
    low: float = np.nan
    high: float = np.nan
    p_value: float = np.nan

    @property
    def significant(self) -> bool:
        """Whether the difference is more than chance, adjusted for all classes (Holm)."""
        return self.p_value < SIGNIFICANCE


# A class, its test images, and a cell per run; None for a run of other test samples.
ClassRow = tuple[str, int, list[ClassCell | None]]


def classes_compared(compared: Sequence[ComparedRun]) -> list[ClassRow]:
    """Compare class by class, the greatest difference first.

    Without predictions of the first run the list is empty.
    """
    first = compared[0].result
    if first is None:
        return []
    measured = ["second", "difference", "low", "high", "p_adjusted"]
    rows = []
    shown = ["class", "images", "accuracy", "precision"]
    for index, (name, images, accuracy, precision) in enumerate(
        first.per_class[shown].itertuples(index=False, name=None)
    ):
        cells: list[ClassCell | None] = [ClassCell(accuracy, precision)]
        for each in compared[1:]:
            if each.difference is None or each.result is None:
                cells.append(None)
                continue
            accuracy, *difference = map(float, each.difference.per_class[measured].iloc[index])
            precision = float(each.result.per_class["precision"].iloc[index])
            cells.append(ClassCell(accuracy, precision, *difference))
        rows.append((name, images, cells))

    def greatest_difference(row: ClassRow) -> float:
        differences = [abs(cell.difference or 0.0) for cell in row[2] if cell is not None]
        return float(np.nanmax(differences))

    return sorted(rows, key=greatest_difference, reverse=True)


def conclusion(first: ComparedRun, other: ComparedRun) -> tuple[str, str]:
    """Which of two runs is better, if any: a statement, and the numbers that support it."""
    if other.difference is None:
        return f"{first.label} and {other.label} are not compared", other.remark or first.remark
    overall = other.difference.overall
    difference, low, high = overall.difference, overall.low, overall.high
    better, worse = (other, first) if difference > 0 else (first, other)
    if difference < 0:
        difference, low, high = -difference, -high, -low
    numbers = (
        f"{100 * difference:.1f} points, 95 % interval {points(low)} to {points(high)}, "
        f"p = {overall.p_value:.2g}; {overall.only_first + overall.only_second:,} of "
        f"{overall.images:,} test samples tell them apart"
    )
    if overall.p_value < SIGNIFICANCE:
        return f"{better.label} is better than {worse.label}", numbers
    return f"{first.label} and {other.label} cannot be told apart", numbers


def comparison_page(compared: Sequence[ComparedRun]) -> str:
    """Make the page: HTML that needs no other file."""
    costs = [
        (*(each.run.data.metrics.get(key, np.nan) for key in COST), *each.interval)
        for each in compared
    ]
    measured = any(seconds == seconds and accuracy == accuracy for seconds, accuracy, *_ in costs)
    return render(
        "comparison.html",
        compared=compared,
        conclusions=[conclusion(compared[0], each) for each in compared[1:]],
        settings=settings_that_differ(compared).to_dict("split"),
        results=results(compared).to_dict("split"),
        classes=classes_compared(compared),
        curves=learning_curves([each.curves for each in compared]),
        validated=any(each.curves.get("val/loss") for each in compared),
        cost=svg(accuracy_cost_figure(costs), "cost") if measured else "",
    )
