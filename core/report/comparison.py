"""Several runs side by side: what differs in their settings and in what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from torchyard.core.errors import RunError, UserError
from torchyard.core.evaluation.confidence import wilson_interval
from torchyard.core.evaluation.metrics import Evaluation, evaluate
from torchyard.core.evaluation.paired_test import Comparison, compare
from torchyard.core.report.formatting import render
from torchyard.core.report.plots import accuracy_against_cost, learning_curves, svg
from torchyard.core.tracking.lookup import recorded_predictions

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from torchyard.core.data.predictions import PredictionTable
    from torchyard.core.report.plots import Curves

    pass


CURVES = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")
SIGNIFICANT = 0.05
# What is shown of each run: heading and metric.
RESULTS = {
    "test loss": "test/loss",
    "worst class": "test/worst_recall",
    "epochs": "train/epochs",
    "parameters": "train/parameters",
    "training, s": "time/train_seconds",
    "whole run, s": "time/total_seconds",
    "images/s": "train/mean_images_per_second",
    "peak memory, MiB": "system/peak_memory_mib",
}


@dataclass(frozen=True, eq=False)
class Compared:
    """One run among those compared.

    Attributes:
        label: its name, with its id where another has the same name.
        run: as MLflow has it.
        curves: its training.
        table, result: its predictions and what they add up to; None where there are none.
        difference: to the first run; None for the first itself, and where there is none.
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
    def interval(self) -> tuple[float, float]:
        """Of the accuracy, 95 %; NaN without predictions."""
        if self.result is None:
            return np.nan, np.nan
        low, high = wilson_interval(self.result.confusion.trace(), self.result.images)
        return float(low), float(high)


def gather(client: MlflowClient, runs: Sequence[Run]) -> list[Compared]:
    """Read what is recorded of the runs, and compare each with the first.

    A run of other test data, or without predictions, takes part with what it has.
    """
    times = Counter(run.info.run_name for run in runs)
    gathered: list[Compared] = []
    for run in runs:
        name, table, result, difference, remark = run.info.run_name, None, None, None, ""
        if times[name] > 1:
            name = f"{name} {run.info.run_id[:8]}"
        try:
            table = recorded_predictions(client, run)
            result = evaluate(table.predictions, table.classes)
            if gathered and gathered[0].table is not None:
                difference = compare(gathered[0].table, table)
        except (UserError, RunError) as error:
            remark = str(error)
        curves = {key: _history(client, run, key) for key in CURVES}
        gathered.append(Compared(name, run, curves, table, result, difference, remark))
    return gathered


def _history(client: MlflowClient, run: Run, key: str) -> list[tuple[int, float]]:
    if key not in run.data.metrics:
        return []
    found = client.get_metric_history(run.info.run_id, key)
    return sorted((metric.step, metric.value) for metric in found)


def settings_that_differ(compared: Sequence[Compared]) -> pd.DataFrame:
    """One row a setting that is not the same in all, one column a run; missing where unset."""
    import pandas as pd

    names = sorted({name for each in compared for name in each.run.data.params})
    rows = {
        name: [each.run.data.params.get(name) for each in compared]
        for name in names
        if len({each.run.data.params.get(name) for each in compared}) > 1
    }
    labels = [each.label for each in compared]
    return pd.DataFrame.from_dict(rows, orient="index", columns=labels, dtype=object)


def results(compared: Sequence[Compared]) -> pd.DataFrame:
    """One row a figure of `RESULTS`, one column a run; NaN where a run has none."""
    import pandas as pd

    columns = {
        each.label: [each.run.data.metrics.get(key, np.nan) for key in RESULTS.values()]
        for each in compared
    }
    return pd.DataFrame(columns, index=list(RESULTS))


@dataclass(frozen=True)
class ClassCell:
    """One class in one run: its accuracy, and the difference to the first run's, if any."""

    accuracy: float
    difference: float | None = None
    low: float = np.nan
    high: float = np.nan
    p_value: float = np.nan

    @property
    def told_apart(self) -> bool:
        """Whether the difference is more than chance, all classes considered (Holm)."""
        return self.p_value < SIGNIFICANT


def classes_compared(compared: Sequence[Compared]) -> list[tuple[str, int, list[ClassCell | None]]]:
    """(class, test images, a cell a run) of each class, the greatest difference first.

    A run that was not tested on the first's samples has None. Without predictions of the
    first run the list is empty.
    """
    first = compared[0].result
    if first is None:
        return []
    rows = []
    for index, name in enumerate(first.per_class["class"]):
        cells: list[ClassCell | None] = [ClassCell(first.per_class["accuracy"][index])]
        for each in compared[1:]:
            if each.difference is None:
                cells.append(None)
                continue
            row = each.difference.per_class.iloc[index]
            numbers = (row[key] for key in ("second", "difference", "low", "high", "p_adjusted"))
            cells.append(ClassCell(*numbers))
        rows.append((name, int(first.per_class["images"][index]), cells))

    def greatest(row: tuple[str, int, list[ClassCell | None]]) -> float:
        found = [abs(cell.difference or 0.0) for cell in row[2] if cell is not None]
        return max((each for each in found if each == each), default=0.0)

    return sorted(rows, key=greatest, reverse=True)


def verdict(first: Compared, other: Compared) -> tuple[str, str]:
    """What may be said of two runs: a statement, and the numbers it stands on."""
    if other.difference is None:
        return f"{first.label} and {other.label} are not compared", other.remark or first.remark
    found = other.difference.overall
    points, low, high = (100 * value for value in (found.difference, found.low, found.high))
    better, worse = (other, first) if points > 0 else (first, other)
    if points < 0:
        points, low, high = -points, -high, -low
    numbers = (
        f"{points:.1f} points, 95 % interval {low:+.1f} to {high:+.1f}, p = {found.p_value:.2g}; "
        f"{found.only_first + found.only_second:,} of {found.images:,} test samples tell them apart"
    )
    if found.p_value < SIGNIFICANT:
        return f"{better.label} is better than {worse.label}", numbers
    return f"{first.label} and {other.label} cannot be told apart", numbers


def comparison_page(compared: Sequence[Compared]) -> str:
    """The page as HTML that needs no other file."""
    curves = learning_curves([each.curves for each in compared])
    points = [
        (
            each.run.data.metrics.get("time/train_seconds", float("nan")),
            each.run.data.metrics.get("test/accuracy", float("nan")),
            *each.interval,
        )
        for each in compared
    ]
    placed = any(seconds == seconds and accuracy == accuracy for seconds, accuracy, *_ in points)
    return render(
        "comparison.html",
        runs=[_run(each) for each in compared],
        verdicts=[verdict(compared[0], each) for each in compared[1:]],
        settings=settings_that_differ(compared).to_dict("split"),
        results=results(compared).to_dict("split"),
        classes=classes_compared(compared),
        curves=[Markup(svg(figure, f"curves {place}")) for place, figure in enumerate(curves)],
        validated=any(each.curves.get("val/loss") for each in compared),
        cost=Markup(svg(accuracy_against_cost(points), "cost")) if placed else "",
    )


def _run(each: Compared) -> dict[str, Any]:
    low, high = each.interval
    return {
        "label": each.label,
        "id": each.run.info.run_id,
        "status": each.run.info.status,
        "dataset": each.run.data.tags.get("dataset", "–"),
        "accuracy": each.run.data.metrics.get("test/accuracy"),
        "low": low,
        "high": high,
    }
