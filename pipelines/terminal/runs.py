"""Runs, a line each: what came out, which one is a champion, and how far one is that trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.text import Text

from torchyard.core.formatting import percent
from torchyard.core.tracking.queries.table import COLUMNS
from torchyard.pipelines.terminal.columns import moment, print_columns

if TYPE_CHECKING:
    import pandas as pd

# --csv and --json have all columns. A run's name has the model and the data set.
SHOWN = ("run", "accuracy", "worst", "epochs", "lr", "started", "images_per_second", "device")
HEADINGS = {"images_per_second": "images/s", "worst": "worst class"}
ROLE = ""  # the heading of what a run is to others
DROPPABLE = ("device", "images/s", "lr", "worst class", "epochs", "started")


def print_runs(
    table: pd.DataFrame, champions: Mapping[str, str], progress: Mapping[str, str]
) -> None:
    """Print the rows of `RunQuery.table`.

    Args:
        table: the runs.
        champions: what runs are the champions of, by their ids: `digits v3`.
        progress: how far runs are that train, by their ids: `epoch 3/10`.
    """
    named = [str(name) for name in table if name not in COLUMNS]
    names = ["run", "accuracy", *named, *SHOWN[2:]]
    headings = [HEADINGS.get(name, name) for name in names]
    headings.insert(2, ROLE)
    rows, called = [], dict(zip(table["id"], table["run"], strict=True))
    for row in table.to_dict("records"):
        cells: list[str | Text] = [_cell(row, name, progress) for name in names]
        cells.insert(2, _role(row, champions, called))
        rows.append(cells)
    texts = ("run", ROLE, "worst class", "started", "device")
    right = [name for name in headings if name not in texts]
    print_columns(headings, rows, right=right, droppable=DROPPABLE)


def _role(row: Mapping[Any, Any], champions: Mapping[str, str], called: Mapping[str, str]) -> Text:
    """What a run is to others; `called` are the names of those that are listed, by their ids."""
    parts = Text()
    if champion := champions.get(row["id"]):
        parts.append("★ ", "yellow").append(champion)
    if row["schedule"] is not None and row["schedule"] == row["schedule"]:
        parts.append(f"{' · ' if parts else ''}{row['schedule']}", "dim")
    if row["parent"] in called:
        of = called[row["parent"]].rpartition(" ")[2]
        parts.append(f"{' · ' if parts else ''}of {of}", "dim")
    return parts


def _cell(row: Mapping[Any, Any], name: str, progress: Mapping[str, str]) -> str:
    value = row[name]
    if name == "accuracy" and row["status"] != "FINISHED":
        return progress.get(row["id"], str(row["status"]).lower())
    if name == "accuracy" and row["seeds"] == row["seeds"]:
        return f"{percent(row['mean_accuracy'], space='')} ±{100 * row['spread']:.1f}"
    if name == "accuracy" and row["best_accuracy"] == row["best_accuracy"]:
        return f"{percent(row['best_accuracy'], space='')} best"
    if value is None or value != value:
        return "–"
    if name == "started":
        return moment(value.to_pydatetime())
    if name == "accuracy":
        return percent(value, space="")
    if name == "worst":
        worst = percent(value, space="")
        return f"{row['worst_class']} ({worst})" if row["worst_class"] else worst
    if name == "images_per_second":
        return f"{value:,.0f}"
    if name == "lr":
        return f"{value:.3g}"
    return f"{value:g}" if isinstance(value, float) else str(value)
