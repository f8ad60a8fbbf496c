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
from torchyard.core.formatting import UNKNOWN, duration, number, percent, points
from torchyard.core.report.class_comparison import (
    ClassRow,
    classes_compared,
    differing_data,
)
from torchyard.core.report.drawing.plots import Curves, accuracy_cost_figure, learning_curves, svg
from torchyard.core.report.page import render
from torchyard.core.report.run.settings import differing
from torchyard.core.tracking.queries.recorded import recorded_predictions

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from torchyard.core.data.predictions import PredictionTable

MAX_CLASSES = 20  # those that differ most; the others are folded
CURVES = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
COST = ("time/train_seconds", "test/accuracy")
NOTABLE = 1.1  # times as long
# Of a run's tags, what may differ beside its settings.
CIRCUMSTANCES = {
    "device": "device_name",
    "precision": "precision",
    "threads": "threads",
    "processes": "processes",
    "torch": "torch_version",
    "commit": "mlflow.source.git.commit",
}
SHOWN_COMMIT = 7
# The metric of each row of results.
RESULTS = {
    "test loss": "test/loss",
    "validation loss": "best/val/loss",
    "worst class": "test/worst_recall",
    "macro F1": "test/macro_f1",
    "epochs": "train/epochs",
    "parameters": "train/parameters",
    "training": "time/train_seconds",
    "whole run": "time/total_seconds",
    "images/s": "train/mean_images_per_second",
    "peak memory, MiB": "system/peak_memory_mib",
}
SHARES = ("worst class", "macro F1")
FORMATS = {
    "test loss": "{:.4f}".format,
    "validation loss": "{:.4f}".format,
    "training": duration,
    "whole run": duration,
    "images/s": "{:,.0f}".format,
    "peak memory, MiB": "{:,.0f}".format,
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
            if compared and (rival := compared[0].table) is not None:
                if rival.test_digest == table.test_digest:
                    difference = compare(rival, table)
                else:
                    remark = differing_data(rival, table)
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


def settings_that_differ(compared: Sequence[ComparedRun]) -> dict[str, list[str | None]]:
    """The settings, and circumstances of `CIRCUMSTANCES`, that are not the same in all.

    A circumstance that is not known, as of a run that failed early, is no difference.
    """
    tags = [each.run.data.tags for each in compared]
    settings = [dict(each.run.data.params) for each in compared]
    for name, key in CIRCUMSTANCES.items():
        known = {of_run[key] for of_run in tags if key in of_run}
        for values, of_run in zip(settings, tags, strict=True):
            values.pop(name, None)  # as it was asked for: `auto`
            if len(known) > 1 and key in of_run:
                shown = SHOWN_COMMIT if name == "commit" else None
                values[name] = of_run[key][:shown]
    return differing(settings)


def setting_rows(compared: Sequence[ComparedRun]) -> list[tuple[str, list[str]]]:
    """The rows of `settings_that_differ` as texts."""
    rows = settings_that_differ(compared).items()
    return [(name, [text or UNKNOWN for text in texts]) for name, texts in rows]


def results(compared: Sequence[ComparedRun]) -> pd.DataFrame:
    """One row per metric of `RESULTS` that a run has, one column per run; NaN where it has none."""
    import pandas as pd

    columns = {each.label: pd.Series(each.run.data.metrics, dtype=float) for each in compared}
    table = pd.DataFrame(columns).reindex(list(RESULTS.values())).set_axis(list(RESULTS))
    return table.dropna(how="all")


def result_rows(compared: Sequence[ComparedRun], space: str = " ") -> list[tuple[str, list[str]]]:
    """The rows of `results` as texts; durations, shares and the worst class as people say them.

    Args:
        compared: the runs.
        space: before a percent sign.
    """
    rows = []
    for name, *values in results(compared).itertuples(name=None):
        shown = FORMATS.get(name, number)
        texts = [UNKNOWN if value != value else shown(value) for value in values]
        if name in SHARES:
            texts = [percent(value, space=space) for value in values]
        if name == "worst class":
            worst = [each.run.data.tags.get("worst_class", "") for each in compared]
            texts = [
                f"{which} ({text})" if which else text
                for which, text in zip(worst, texts, strict=True)
            ]
        rows.append((name, texts))
    return rows


def classes_of(compared: Sequence[ComparedRun]) -> list[ClassRow]:
    """The classes that all runs have, those that differ most first."""
    return classes_compared(
        [each.result for each in compared], [each.difference for each in compared]
    )


def conclusion(first: ComparedRun, other: ComparedRun) -> tuple[str, str]:
    """Which of two runs is better, if any: a statement, and the numbers that support it."""
    if other.difference is None:
        remark = (other.remark or first.remark).rstrip(".")
        return f"No verdict on {first.label} and {other.label}", remark
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
    if overall.told_apart:
        return f"{better.label} is better than {worse.label}", numbers
    return f"{first.label} and {other.label} cannot be told apart", numbers


def price(first: ComparedRun, other: ComparedRun) -> str:
    """How much longer one of two runs trained, and for what.

    Empty where that is about the same, and where they do not pair.
    """
    if other.difference is None:
        return ""
    fast, slow = sorted((first, other), key=_training_seconds)
    seconds, longer = _training_seconds(fast), _training_seconds(slow)
    if not (seconds > 0 and longer / seconds >= NOTABLE):
        return ""
    said = (
        f"{slow.label} trained {longer / seconds:,.1f} times as long "
        f"({duration(longer)} against {duration(seconds)})"
    )
    if fast.run.data.tags.get("device_name") != slow.run.data.tags.get("device_name"):
        said += ", on another device"
    if not other.difference.overall.told_apart:
        return said
    gained = 100 * other.difference.overall.difference * (1 if slow is other else -1)
    if gained < 0:
        return f"{said}, and is the worse one"
    return f"{said}: {duration((longer - seconds) / gained)} more for each point"


def _training_seconds(each: ComparedRun) -> float:
    """NaN where it is not recorded."""
    return float(each.run.data.metrics.get(COST[0], np.nan))


def comparison_page(compared: Sequence[ComparedRun]) -> str:
    """Make the page: HTML that needs no other file."""
    costs = [
        (*(each.run.data.metrics.get(key, np.nan) for key in COST), *each.interval)
        for each in compared
    ]
    measured = any(seconds == seconds and accuracy == accuracy for seconds, accuracy, *_ in costs)
    rows = classes_of(compared)
    shares = [cell.accuracy for row in rows for cell in row[2] if cell is not None]
    return render(
        "comparison.html",
        compared=compared,
        conclusions=[
            (*conclusion(compared[0], each), price(compared[0], each)) for each in compared[1:]
        ],
        settings=setting_rows(compared),
        results=result_rows(compared),
        classes=rows,
        most_classes=MAX_CLASSES,
        least=float(np.floor(10 * np.nanmin([*shares, 1.0])) / 10),
        alone=len({each.table.test_digest for each in compared if each.table is not None}) > 1,
        curves=learning_curves([each.curves for each in compared]),
        validated=any(each.curves.get("val/loss") for each in compared),
        cost=svg(accuracy_cost_figure(costs), "cost") if measured else "",
    )
