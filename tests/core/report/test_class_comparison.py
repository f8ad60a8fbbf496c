"""Runs compared class by class: shared classes, and data that do not pair."""

from __future__ import annotations

import numpy as np
import pytest

from tests.core.report.figures import guesses
from torchyard.core.data.predictions import PredictionTable
from torchyard.core.evaluation.metrics import evaluate
from torchyard.core.evaluation.paired_test import compare
from torchyard.core.report.class_comparison import (
    accuracy_on,
    classes_compared,
    differing_data,
)


def table(run: str, classes: tuple[str, ...], right: list[int], digest: str) -> PredictionTable:
    """Ten samples of each class, so many of them right."""
    targets = np.repeat(np.arange(len(classes)), 10)
    wrong = np.tile(np.arange(10), len(classes)) >= np.repeat(right, 10)
    predicted = np.where(wrong, (targets + 1) % len(classes), targets)
    return PredictionTable(guesses(predicted, targets, len(classes)), run, "toy", classes, digest)


THREE = table("three", ("cat", "dog", "fox"), [9, 5, 1], "a")
TWO = table("two", ("fox", "cat"), [8, 7], "b")


def test_runs_of_other_classes_stand_side_by_side_on_the_shared_ones_without_a_difference() -> None:
    results = [evaluate(each.predictions, each.classes) for each in (THREE, TWO)]
    rows = classes_compared(results, [None, None])
    assert [row[0] for row in rows] == ["fox", "cat"]  # those that differ most first
    assert [[cell.accuracy for cell in cells] for _, _, cells in rows] == [[0.1, 0.8], [0.9, 0.7]]
    assert not any(cell.significant for _, _, cells in rows for cell in cells)


def test_it_is_said_how_the_data_differ_and_what_is_right_of_the_shared_classes() -> None:
    said = differing_data(THREE, TWO)
    assert "only three has dog" in said
    assert "Of the 2 classes in both, right are 50.0 % in three and 75.0 % in two" in said
    assert "only" not in differing_data(TWO, table("more", ("cat", "fox"), [7, 8], "c"))
    assert "without a class in common" in differing_data(TWO, table("x", ("owl",), [10], "d"))


def test_the_accuracy_on_some_classes_is_that_of_their_samples() -> None:
    assert accuracy_on(THREE, {"cat", "fox"}) == 0.5
    assert np.isnan(accuracy_on(THREE, {"owl"}))


def test_a_difference_is_that_of_its_class_whatever_the_order() -> None:
    other = table("other", ("cat", "dog", "fox"), [9, 5, 9], "a")
    results = [evaluate(each.predictions, each.classes) for each in (THREE, other)]
    name, images, cells = classes_compared(results, [None, compare(THREE, other)])[0]
    assert (name, images) == ("fox", 10)
    assert cells[1].difference == pytest.approx(0.8)
    assert cells[1].significant
    assert cells[1].low > 0
