"""Runs compared: a column each, and what to think of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.markup import escape

from torchyard.core.formatting import UNKNOWN, percent, points
from torchyard.pipelines import display
from torchyard.pipelines.terminal.columns import print_columns

if TYPE_CHECKING:
    from torchyard.core.report.class_comparison import ClassCell
    from torchyard.core.report.comparison import ComparedRun

MAX_CLASSES = 20  # the page has all of them
FIRST_COLUMN = 16  # about the width of the names of results


def print_comparison(compared: Sequence[ComparedRun]) -> None:
    """Print the settings that differ, the results, the classes that differ most, and verdicts.

    Args:
        compared: the runs, as `core.report.comparison` compares them.
    """
    from torchyard.core.report import comparison

    names = _headings(compared)
    if settings := comparison.setting_rows(compared):
        _print_by_run("setting", names, settings)
    else:
        display.stdout.print("Their settings are the same.")
    display.stdout.print()
    placements = [each.placement for each in compared]
    results = [*_accuracy_rows(compared), *comparison.result_rows(compared, "")]
    _print_by_run("result", names, [*results, ("device", placements)])
    display.stdout.print()
    rows = comparison.classes_of(compared)
    if rows:
        headings = ("class", *names, "precision", "images")
        shown = [
            (name, *map(_class_cell, cells), _precisions(cells), f"{n:,}")
            for name, n, cells in rows[:MAX_CLASSES]
        ]
        print_columns(headings, shown, right=headings[1:], droppable=("precision", "images"))
        rest = len(rows) - MAX_CLASSES
        if rest > 0:
            display.stdout.print(f"and {rest} classes that differ less (--html FILE shows all)")
        if any(cell and cell.difference is not None for _, _, cells in rows for cell in cells):
            display.stdout.print(
                "points, 95 % interval; *: significant with all classes considered"
            )
        display.stdout.print()
    for each in compared[1:]:
        statement, numbers = comparison.conclusion(compared[0], each)
        display.stdout.print(f"[bold]{escape(statement)}[/]: {escape(numbers)}", soft_wrap=True)
        if price := comparison.price(compared[0], each):
            display.stdout.print(escape(price), soft_wrap=True)


def _headings(compared: Sequence[ComparedRun]) -> list[str]:
    """The runs' names; `#1` where they have no room beside one another."""
    whole = [each.label for each in compared]
    short = [label.rpartition(" ")[2] for label in whole]
    wide = FIRST_COLUMN + sum(cell_len(label) + 2 for label in whole)
    fits = wide <= display.stdout.width or not display.stdout.is_terminal
    return whole if fits or len({*short}) < len(short) else short


def _print_by_run(
    heading: str, names: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]
) -> None:
    display.print_table((heading, *names), [(name, *texts) for name, texts in rows], right=names)


def _accuracy_rows(compared: Sequence[ComparedRun]) -> list[tuple[str, list[str]]]:
    accuracies, intervals = [], []
    for each in compared:
        accuracy, (low, high) = each.run.data.metrics.get("test/accuracy"), each.interval
        text = each.run.info.status if accuracy is None else percent(accuracy, space="")
        accuracies.append(text)
        intervals.append(UNKNOWN if low != low else f"{100 * low:.1f} to {100 * high:.1f}")
    return [("accuracy", accuracies), ("95 % interval", intervals)]


def _class_cell(cell: ClassCell | None) -> str:
    if cell is None or cell.accuracy != cell.accuracy:
        return "–"
    text = percent(cell.accuracy, space="")
    if cell.difference is None:
        return text
    interval = f"({points(cell.low)} to {points(cell.high)}){'*' if cell.significant else ''}"
    return f"{text:>6}  {points(cell.difference):>5} {interval:<17}"


def _precisions(cells: Sequence[ClassCell | None]) -> str:
    return " · ".join(percent(cell.precision if cell else None, space="") for cell in cells)
