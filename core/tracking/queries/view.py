"""What MLflow's page of an experiment opens with: the columns of its table, and its charts.

A view is a tag of the experiment, as MLflow 3.17's own page writes it. Learning curves come first,
then what the runs came to and how they differ; MLflow adds a chart for every other metric.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from torchyard.core.tracking.queries.table import COLUMNS

KEY = "torchyard"  # in an address: …/runs?viewStateShareKey=torchyard
TAG = f"mlflow.sharedViewState.{KEY}"

CURVES = {"val": ("val/accuracy", "val/loss"), "train": ("train/accuracy", "train/loss")}
RESULTS = "results"
# An id that the page shows as a branch, a sentence, and what only the parents of seeds and trials
# have: the page sorts metrics by name, and columns of dashes would stand before the accuracy.
NOT_SHOWN = ("parent", "reason", "seeds", "mean_accuracy", "spread", "best_accuracy")
ACCURACY = "test/accuracy"
COST = ("train/base_learning_rate", "train/epochs", "time/train_seconds")


def results_view() -> str:
    """The value of the tag."""
    columns = [
        column.field
        for name, column in COLUMNS.items()
        if column.place != "attributes" and name not in NOT_SHOWN
    ]
    state = {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": columns,
        "compareRunSections": [_section(name) for name in (*CURVES, RESULTS)],
        "compareRunCharts": [*_curves(), *_results()],
        "isAccordionReordered": True,  # otherwise the page sorts them by name
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    view = {"name": "Results", "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"}
    return json.dumps(view)


def _section(name: str) -> dict[str, Any]:
    placed = {"display": True, "isReordered": False, "deleted": False, "isGenerated": True}
    return {"uuid": name, "name": name, **placed}


def _curves() -> list[dict[str, Any]]:
    """A line per metric, over the epochs."""
    return [
        _chart("LINE", section, key, metricKey=key, xAxisKey="step", useGlobalXaxisKey=True)
        | {"lineSmoothness": 0, "xAxisScaleType": "linear", "scaleType": "linear", "range": {}}
        | {"yAxisKey": "metric", "yAxisExpressions": [], "useGlobalLineSmoothing": True}
        for section, keys in CURVES.items()
        for key in keys
    ]


def _results() -> list[dict[str, Any]]:
    """The accuracy of each run, against what it may come from, and all settings that differ."""
    bars = _chart("BAR", RESULTS, ACCURACY, metricKey=ACCURACY)
    metrics = {"selectedParams": [], "selectedMetrics": [*COST, ACCURACY], "showAllRuns": False}
    parallel = _chart("PARALLEL", RESULTS, "accuracy against settings", **metrics)
    differing = {"showChangeFromBaseline": True, "showDifferencesOnly": True}
    names = {"chartName": "Settings that differ", "compareGroups": ["Parameters"]}
    difference = _chart("DIFFERENCE", RESULTS, "settings", **names, **differing)
    return [bars, parallel, difference | {"baselineColumnUuid": ""}]


def _chart(kind: str, section: str, name: str, **more: Any) -> dict[str, Any]:
    shown = {"type": kind, "metricSectionId": section, "uuid": f"{section}-{name}"}
    return (
        shown
        | {"deleted": False, "isGenerated": kind in ("LINE", "BAR"), **more}
        | ({"displayName": name.rpartition("/")[2], "runsCountToCompare": 10})
    )
