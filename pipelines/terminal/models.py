"""Registered models: the champion first, then those before it; the refused ones are a count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

from rich.text import Text

from torchyard.core.formatting import percent, printable, times
from torchyard.core.tracking.queries.lookup import CHAMPION
from torchyard.pipelines import display
from torchyard.pipelines.terminal.columns import moment, print_columns

HEADINGS = ("version", "run", "accuracy", "status", "when", "by")


def print_models(
    rows: Sequence[Mapping[str, Any]], asks: Mapping[str, Mapping[str, int]], refused: bool
) -> None:
    """Print the rows of `registry.history`.

    Args:
        rows: those of a model follow each other, the newest first.
        asks: how often the test samples of each model were asked, by their digests.
        refused: whether the runs that were refused are printed, too, and not counted.
    """
    for position, (model, of_model) in enumerate(groupby(rows, lambda row: row["model"])):
        if position:
            display.stdout.print()
        found = list(of_model)
        versions = [row for row in found if row["version"] is not None]
        not_passed = [row for row in found if row["version"] is None]
        versions.sort(key=lambda row: row["status"] != CHAMPION)
        display.stdout.print(Text(printable(model), "bold"))
        shown = versions + (not_passed if refused else [])
        print_columns(
            HEADINGS,
            [_cells(row) for row in shown],
            right=("accuracy",),
            droppable=("by", "when"),
            header=False,
        )
        if versions:
            newest = versions[0]
            _print_note(f"v{newest['version']}: {newest['why']}")
            if newest["data"]:
                _print_note(f"trained on {newest['data']}")
        for digest, count in asks.get(model, {}).items():
            _print_note(f"its test samples ({digest}) were asked {times(count)}")
        if not_passed and not refused:
            newest = not_passed[0]
            last = newest["run"] or "deleted"
            by = str(newest["status"]).removeprefix("refused ")
            _print_note(f"{len(not_passed)} refused, the last {last} {by}  (--refused)")


def _cells(row: Mapping[str, Any]) -> list[str | Text]:
    version = "  –" if row["version"] is None else f"  v{row['version']}"
    status = Text(printable(str(row["status"]).replace("version ", "v")))
    if row["status"] == CHAMPION:
        version, status = f"★ v{row['version']}", Text(CHAMPION, "bold")
    return [
        Text(version, "yellow" if version[0] == "★" else ""),
        row["run"] or "deleted",
        percent(row["accuracy"], digits=2, space=""),
        status,
        moment(datetime.fromisoformat(row["promoted_at"])) if row["promoted_at"] else "",
        row["by"],
    ]


def _print_note(text: str) -> None:
    """Print what stands below the versions of a model: in a pipe in one line."""
    note = Text(printable(text), "dim")
    lines = (
        note.wrap(display.stdout, display.stdout.width - 2)
        if display.stdout.is_terminal
        else [note]
    )
    for line in lines:
        line.rstrip()
        display.stdout.print(Text("  ").append(line), soft_wrap=True)
