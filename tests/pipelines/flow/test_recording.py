"""What of a run is recorded: its test metrics, learning curves and configuration."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from torchyard.core.config.resolve import read_config
from torchyard.core.config.schema import RunConfig
from torchyard.core.data.predictions import Predictions
from torchyard.core.errors import RunError
from torchyard.core.evaluation.metrics import evaluate
from torchyard.core.hosting.host import host
from torchyard.core.tracking.record import RunRecord
from torchyard.core.training.events import EpochDone, RunningLoss, as_plain
from torchyard.core.training.run_log import Line, RunLog
from torchyard.pipelines.commands.arguments import PRESETS
from torchyard.pipelines.flow import recording

CLASSES = ("cat", "dog", "ship")


@pytest.fixture
def result():
    """Two of three right; no sample is a ship, and none is predicted as one."""
    logits = np.array([[2, 0, 0], [0, 2, 0], [2, 0, 0]], dtype=np.float32)
    return evaluate(Predictions(logits, np.array([0, 1, 1])), CLASSES)


def test_overall_metrics_have_the_recall_of_the_worst_class(result):
    metrics = recording.overall_metrics(result)
    assert metrics["test/accuracy"] == pytest.approx(2 / 3)
    assert metrics["test/worst_recall"] == 0.5
    assert metrics["test/loss"] == result.cross_entropy


def test_what_is_undefined_of_a_class_is_no_metric(result):
    metrics = recording.class_metrics(result, CLASSES)
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
    curves = recording.curves(tmp_path)
    assert curves["train/loss"] == [(1, 1.0), (2, 0.5)]
    assert "val/loss" not in curves


def test_the_figures_of_the_epoch_whose_weights_are_kept_are_metrics_of_their_own():
    curves = {
        "val/loss": [(1, 0.5), (2, 0.3), (3, 0.9)],
        "train/accuracy": [(1, 0.1), (2, 0.2), (3, 0.3)],
        "train/learning_rate": [(1, 1.0), (2, 1.0), (3, 1.0)],
    }
    kept = {"best/val/loss": 0.3, "best/train/accuracy": 0.2}
    assert recording.kept_metrics(curves, 2) == kept
    assert recording.kept_metrics(curves, 4) == {}


def test_the_recorded_configuration_is_read_as_it_was():
    config = read_config("digits", ["train.seed=3"], PRESETS, host()).config
    text = recording.config_text(config)
    assert RunConfig.model_validate(yaml.safe_load(text)) == config


def test_a_seed_per_run_is_a_number_and_one_for_each_run():
    resolved = read_config("digits", ["train.seed=per_run"], PRESETS, host())
    drawn = [recording.with_drawn_seed(resolved).config.train.drawn_seed for _ in range(3)]
    assert len(set(drawn)) == 3
    assert all(0 <= seed < 2**32 for seed in drawn)
    fixed = read_config("digits", ["train.seed=7"], PRESETS, host())
    assert recording.with_drawn_seed(fixed) is fixed


def test_only_the_same_configuration_data_and_code_are_a_repeat(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", recorded.client.tracking_uri)
    monkeypatch.chdir(tmp_path)
    config = read_config("digits", [], PRESETS, host()).config
    other = read_config("digits", ["train.seed=1"], PRESETS, host()).config
    skipping = read_config("digits", ["train.skip_repeats=true"], PRESETS, host()).config
    data, changed = SimpleNamespace(digest="a" * 64), SimpleNamespace(digest="b" * 64)
    record = RunRecord.start(name_stem="repeats", parameters={}, tags={})
    assert recording.repeated_run(record, config, data) is None
    assert recording.repeated_run(record, config, data) is None  # it has not finished
    record.finish("FINISHED")
    later = RunRecord.start(name_stem="repeats", parameters={}, tags={})
    assert recording.repeated_run(later, other, data) is None
    assert recording.repeated_run(later, config, changed) is None
    assert recording.repeated_run(later, skipping, data) == record.name
    monkeypatch.setattr(recording, "version", lambda name: "another")
    assert recording.repeated_run(later, config, data) is None
    later.finish("KILLED")
    for run in (record, later):
        recorded.client.delete_run(run.run_id)


@pytest.mark.parametrize(
    ("taken_over", "recorded", "says"),
    [
        (None, True, "Recorded as KILLED: lenet #1  abc"),
        (None, False, "KILLED, but MLflow does not have all of it yet; that waits on disk: "),
        (RunError("taken over"), False, "Another process has the run now: lenet #1  abc"),
    ],
)
def test_what_is_told_of_a_run_that_ended_early(taken_over, recorded, says):
    keeper = SimpleNamespace(taken_over=taken_over)
    record = SimpleNamespace(name="lenet #1", run_id="abc", keeper=keeper)
    assert recording.ending_note(record, "KILLED", recorded).startswith(says)
