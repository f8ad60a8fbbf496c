"""Metrics of predictions, against scikit-learn and torch."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchyard.core.data.predictions import Predictions
from torchyard.core.errors import RunError
from torchyard.core.evaluation.metrics import evaluate

HOSTILE = [
    'say "hi"',
    "a,b",
    "a|b",
    "<b>bold</b>",
    "AT&T &amp;",
    "猫 和 狗",
    "*x* _y_ `z` [l](u) $m_1$ #1 ~~s~~ \\|",
    "carriage\rreturn",
    "",
]


def predictions(logits, targets) -> Predictions:
    return Predictions(np.asarray(logits, np.float32), np.asarray(targets, np.int64))


def guesses(predicted, targets, width: int) -> Predictions:
    """Predictions of these classes, all equally sure."""
    return predictions(5 * np.eye(width)[predicted], targets)


def table(evaluation) -> dict[str, dict]:
    return {row["class"]: row for row in evaluation.per_class.to_dict("records")}


# The loss


def test_cross_entropy_matches_torch_even_for_certain_mistakes() -> None:
    import torch

    rng = np.random.default_rng(1)
    logits = rng.normal(0, 200, (40, 5)).astype(np.float32)
    targets = rng.integers(0, 5, 40)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).double(), torch.from_numpy(targets)
    )
    found = evaluate(predictions(logits, targets), list("abcde")).cross_entropy
    assert found == pytest.approx(float(expected), rel=1e-5)


# The table


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_table_agrees_with_scikit_learn(data: st.DataObject) -> None:
    from sklearn.metrics import precision_recall_fscore_support

    width = data.draw(st.integers(1, 12))
    pair = st.tuples(st.integers(0, width - 1), st.integers(0, width - 1))
    true, guessed = map(list, zip(*data.draw(st.lists(pair, min_size=1, max_size=60)), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(guesses(guessed, true, width), [str(i) for i in range(width)])
    labels = list(range(width))
    precision, recall, f1, images = precision_recall_fscore_support(
        true, guessed, labels=labels, zero_division=np.nan
    )
    pairs = Counter(zip(true, guessed, strict=True))
    assert found.confusion.tolist() == [[pairs[i, j] for j in labels] for i in labels]
    np.testing.assert_allclose(found.per_class["precision"], precision)
    np.testing.assert_allclose(found.per_class["accuracy"], recall)
    np.testing.assert_allclose(found.per_class["f1"], f1)
    assert found.per_class["images"].tolist() == images.tolist()
    assert found.per_class["correct"].sum() == round(found.accuracy * len(true))
    assert found.confusion.dtype == np.int64


def test_a_class_without_images_divides_nothing_by_zero() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate(guesses([0, 0, 1, 2], [0, 0, 1, 1], 4), ["a", "b", "guessed", "unheard"])
    rows = table(found)
    assert rows["guessed"]["images"] == 0
    assert math.isnan(rows["guessed"]["accuracy"])
    assert rows["guessed"]["precision"] == 0
    assert math.isnan(rows["unheard"]["precision"])
    assert math.isnan(rows["unheard"]["f1"])
    assert rows["b"] == pytest.approx(
        {"class": "b", "images": 2, "correct": 1, "accuracy": 0.5, "precision": 1, "f1": 2 / 3}
    )
    assert found.accuracy == 0.75
    assert found.images == 4


def test_a_class_never_predicted_has_no_precision_but_an_f1_of_zero() -> None:
    row = table(evaluate(guesses([0, 0], [0, 1], 2), ["a", "b"]))["b"]
    assert row["accuracy"] == 0
    assert math.isnan(row["precision"])
    assert row["f1"] == 0


def test_a_thousand_classes_and_none_at_all() -> None:
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 1000, 3000)
    found = evaluate(guesses(targets, targets, 1000), [f"c{i}" for i in range(1000)])
    assert found.accuracy == 1
    assert found.confusion.shape == (1000, 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = evaluate(predictions(np.zeros((0, 2)), []), ["a", "b"])
    assert math.isnan(empty.accuracy)
    assert math.isnan(empty.cross_entropy)


@pytest.mark.parametrize("target", [-1, 2])
def test_a_label_out_of_range_is_named(target: int) -> None:
    with pytest.raises(RunError, match=str(target)):
        evaluate(predictions(np.zeros((2, 2)), [0, target]), ["a", "b"])


def test_more_outputs_than_classes_is_an_error() -> None:
    with pytest.raises(RunError, match="3 outputs for 2 classes"):
        evaluate(predictions(np.zeros((2, 3)), [0, 1]), ["a", "b"])


def test_most_confused_counts_mistakes_only() -> None:
    found = evaluate(guesses([1, 1, 1, 2, 0, 2, 2], [0, 0, 2, 1, 0, 2, 2], 3), list("abc"))
    assert found.most_confused() == [(0, 1, 2), (1, 2, 1), (2, 1, 1)]
    assert found.most_confused(1) == [(0, 1, 2)]


# Tables as text, with hostile names of classes


@pytest.fixture
def hostile():
    width = len(HOSTILE)
    return evaluate(guesses([0, 1, 1], [0, 0, 0], width), HOSTILE)


def test_csv_reads_back_in_full_precision(hostile) -> None:
    rows = list(csv.DictReader(io.StringIO(hostile.per_class_csv(), newline="")))
    assert [row["class"] for row in rows] == HOSTILE
    assert float(rows[0]["accuracy"]) == 1 / 3
    assert rows[2]["accuracy"] == ""


def test_json_reads_back_with_null_for_nan(hostile) -> None:
    rows = json.loads(hostile.per_class_json(), parse_constant=pytest.fail)
    assert [row["class"] for row in rows] == HOSTILE
    assert rows[0]["accuracy"] == 1 / 3
    assert rows[0]["images"] == 3
    assert rows[2]["accuracy"] is None
