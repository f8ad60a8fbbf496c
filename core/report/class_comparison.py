"""Runs compared class by class, on the classes that all of them have."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from torchyard.core.evaluation.paired_test import SIGNIFICANCE

if TYPE_CHECKING:
    from torchyard.core.data.predictions import PredictionTable
    from torchyard.core.evaluation.metrics import Evaluation
    from torchyard.core.evaluation.paired_test import Comparison

NAMED = 8  # classes in a sentence


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


# A class, the first run's test images of it, and a cell per run; None for one that has none.
ClassRow = tuple[str, int, list[ClassCell | None]]


def classes_compared(
    results: Sequence[Evaluation | None], differences: Sequence[Comparison | None]
) -> list[ClassRow]:
    """Compare class by class, on the classes of all: the greatest difference first.

    Args:
        results: of each run; None without predictions. Without those of the first the list is
            empty.
        differences: of each run to the first; None where they do not pair.
    """
    if results[0] is None:
        return []
    tables = [_by_class(result) for result in results]
    paired = [_by_class(found) for found in differences]
    rows = []
    for name in shared_classes([result for result in results if result is not None]):
        cells: list[ClassCell | None] = []
        for table, difference in zip(tables, paired, strict=True):
            if not table:
                cells.append(None)
                continue
            shown = [table[name][column] for column in ("accuracy", "precision")]
            if difference:
                columns = ("difference", "low", "high", "p_adjusted")
                shown += [difference[name][column] for column in columns]
            cells.append(ClassCell(*shown))
        rows.append((name, tables[0][name]["images"], cells))

    def spread(row: ClassRow) -> float:
        shares = [cell.accuracy for cell in row[2] if cell is not None]
        known = [share for share in shares if share == share]
        return max(abs(share - known[0]) for share in known) if known else -1.0

    return sorted(rows, key=spread, reverse=True)


def _by_class(result: Evaluation | Comparison | None) -> dict[str, dict[Hashable, Any]]:
    """The rows of a per-class table by the names of the classes; none without a table."""
    records = [] if result is None else result.per_class.to_dict("records")
    return {row["class"]: row for row in records}


def shared_classes(results: Sequence[Evaluation]) -> list[str]:
    """The names of the classes that all runs have, in the order of the first."""
    others = [set(result.per_class["class"]) for result in results[1:]]
    return [name for name in results[0].per_class["class"] if all(name in each for each in others)]


def differing_data(first: PredictionTable, second: PredictionTable) -> str:
    """How the test data of two runs differ, that do not pair, and what both have right of it."""
    ours, theirs = set(first.classes), set(second.classes)
    if ours == theirs:
        return f"they were tested on different samples of the same {len(ours)} classes"
    if not ours & theirs:
        return "they were tested on different data, without a class in common"
    said = "they were tested on different data"
    for table, only in ((first, ours - theirs), (second, theirs - ours)):
        if only:
            said += f"; only {table.run} has {_listed([n for n in table.classes if n in only])}"
    accuracies = " and ".join(
        f"{100 * accuracy_on(table, ours & theirs):.1f} % in {table.run}"
        for table in (first, second)
    )
    return f"{said}. Of the {len(ours & theirs)} classes in both, right are {accuracies}"


def accuracy_on(table: PredictionTable, classes: set[str]) -> float:
    """The share of the test samples of these classes that is right, among all classes."""
    chosen = np.isin(
        table.predictions.targets, [i for i, name in enumerate(table.classes) if name in classes]
    )
    right = table.predictions.predicted == table.predictions.targets
    return float(right[chosen].mean()) if chosen.any() else float("nan")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
