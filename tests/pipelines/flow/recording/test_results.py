"""What of a run is recorded: its test metrics and learning curves."""

import dataclasses

import numpy as np
import pytest

from torchyard.core.data.predictions import Predictions
from torchyard.core.evaluation.metrics import evaluate
from torchyard.core.training.events import EpochDone, RunningLoss, as_plain
from torchyard.core.training.run_log import Line, RunLog
from torchyard.pipelines.flow.recording.results import (
    class_metrics,
    curves,
    kept_metrics,
    overall_metrics,
)

CLASSES = ("cat", "dog", "ship")


@pytest.fixture
def result():
    """Two of three right; no sample is a ship, and none is predicted as one."""
    logits = np.array([[2, 0, 0], [0, 2, 0], [2, 0, 0]], dtype=np.float32)
    return evaluate(Predictions(logits, np.array([0, 1, 1])), CLASSES)


def test_overall_metrics_have_the_recall_of_the_worst_class(result):
    metrics = overall_metrics(result)
    assert metrics["test/accuracy"] == pytest.approx(2 / 3)
    assert metrics["test/worst_recall"] == 0.5
    assert metrics["test/loss"] == result.cross_entropy


def test_what_is_undefined_of_a_class_is_no_metric(result):
    metrics = class_metrics(result, CLASSES)
    assert metrics["test/recall/dog"] == metrics["test/precision/cat"] == 0.5
    assert set(metrics) == {
        f"test/{name}/{each}" for name in ("recall", "precision", "f1") for each in CLASSES[:2]
    }


def test_curves_have_each_epoch_once_and_the_last_line_of_an_epoch_counts(tmp_path):
    log, first = RunLog(tmp_path), EpochDone(1, 9, 2.0, 0.5, None, None, 0.1, 100.0, 1.0)
    again = dataclasses.replace(first, loss=1.0)
    second = dataclasses.replace(first, epoch=2, loss=0.5)
    for event in (second, first, RunningLoss(3, 7.0), again):
        values = as_plain(event)
        log.append(Line(values.pop("kind"), values))
    found = curves(tmp_path)
    assert found["train/loss"] == [(1, 1.0), (2, 0.5)]
    assert "val/loss" not in found


def test_the_figures_of_the_epoch_whose_weights_are_kept_are_metrics_of_their_own():
    curves = {
        "val/loss": [(1, 0.5), (2, 0.3), (3, 0.9)],
        "train/accuracy": [(1, 0.1), (2, 0.2), (3, 0.3)],
        "train/learning_rate": [(1, 1.0), (2, 1.0), (3, 1.0)],
    }
    kept = {"best/val/loss": 0.3, "best/train/accuracy": 0.2}
    assert kept_metrics(curves, 2) == kept
    assert kept_metrics(curves, 4) == {}
