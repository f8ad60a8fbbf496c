"""The tasks of the flow, each a few lines that call core: prepare, train, evaluate, report."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from torchyard.core.config.schema import RunConfig
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import cache_folder
from torchyard.core.data.predictions import PREDICTIONS_FILE, Predictions, PredictionTable
from torchyard.core.evaluation.conformal import CONFIDENCE_FILE, Confidence
from torchyard.core.evaluation.metrics import Evaluation, evaluate
from torchyard.core.evaluation.nearest import FILE as NEAREST_FILE
from torchyard.core.formatting import dimensions
from torchyard.pipelines.display import display
from torchyard.pipelines.flow.failures import RETRIED
from torchyard.pipelines.flow.outcome import Outcome
from torchyard.pipelines.flow.progress import ProgressReport
from torchyard.pipelines.flow.recording import promotion, report, results
from torchyard.pipelines.flow.recording.promotion import in_short
from torchyard.pipelines.flow.stage import (
    call,
    plain,
    record_of,
    resolve_here,
    say,
    stage,
    temporary_folder,
)
from torchyard.pipelines.worker.process import shared_worker


@task(cache_policy=NO_CACHE, **RETRIED, task_run_name="prepare_data: {config.dataset.name}")
def prepare_data(config: RunConfig, run_id: str) -> str:
    """Download or read, verify and store the data set; returns the folder of its arrays."""
    with stage("prepare", run_id, config.dataset.name):
        done = call("prepare", run_id, config=plain(config), cache=str(cache_folder()))
        data, record = PreparedDataset.open(Path(done["folder"])), record_of(run_id)
        record.log_dataset(data)
        found = "found prepared" if done["found"] else "prepared"
        if config.dataset.verify:
            found += ", contents compared"
        say(
            "prepare",
            f"{data.name}: {data.samples} of {dimensions(data.shape)}, "
            f"{len(data.classes)} classes, {found}",
        )
        notes = list(data.notes)
        if data.validation and (share := config.train.validation):
            notes.append(f"its own validation split is used, and train.validation={share:g} is not")
        for note in notes:
            say("prepare", note)
        if notes:
            record.set_tags({"data_notes": "\n".join(notes)})
        if resolve_here(config).audited:
            for line in results.record_audit(record, config, data):
                say("prepare", line)
    return str(data.folder)


@task(
    task_run_name="train_model: {config.model.name}, {config.optimizer.name}",
    cache_policy=NO_CACHE,
)
def train_model(
    config: RunConfig, data: str, run_id: str, weights: str | None = None
) -> dict[str, Any]:
    """Train, from `weights` if a file is given.

    Returns:
        `weights` (the checkpoint to use), placement, `fit` and `parameters`.
    """
    with stage("train", run_id, config.model.name):
        record, classes = record_of(run_id), PreparedDataset.open(Path(data)).classes
        arguments: dict[str, Any] = {
            "config": plain(config),
            "data": data,
            "folder": str(record.folder),
            "weights": weights,
        }
        display.get().monitor = config.train.monitor
        progress = ProgressReport(config.train.epochs)
        done = call("train", run_id, classes, progress, **arguments)
        results.record_training(record, done)
        if note := results.differing_note(record):
            say("train", note)
        fit, placement = done["fit"], done["placement"]
        balance = done["balance"].get("balance", "")
        trained = "parameters to train" if config.model.freeze else "parameters"
        compiled = f", compiled {placement['compiled']}" * (placement["compiled"] != "false")
        steps = f"{fit['steps']:,} steps"
        if config.train.batch_size == "auto":
            steps += f" of {placement['batch_size']} samples"
        early = "; stopped early" * fit["stopped_early"]
        if fit["best_epoch"] != fit["epochs"]:
            by = f" by {config.train.monitor}" * (config.train.monitor != "loss")
            early += f"; the weights of epoch {fit['best_epoch']}, the best{by}, are kept"
        say(
            "train",
            f"{config.model.name} with {done['parameters']:,} {trained}, {steps} "
            f"in {fit['seconds']:.1f} s on {placement['device']} ({placement['device_name']}), "
            f"{placement['execution']}{compiled}{early}",
        )
        if balance:
            say("train", balance)
    taken = {key: done[key] for key in ("weights", "parameters")}
    return {**placement, **fit, **taken, "balance": balance}


@task(cache_policy=NO_CACHE, **RETRIED, task_run_name="evaluate_model: {config.model.name}")
def evaluate_model(config: RunConfig, data: str, trained: dict[str, Any], run_id: str) -> str:
    """Predict and draw the test split, log model and results; returns the predictions' file."""
    record, epoch = record_of(run_id), trained["best_epoch"]
    with stage("evaluate", run_id, config.dataset.name):
        nearest = record.folder / NEAREST_FILE
        prepared, predictions, result = predict_test(
            config, data, trained["weights"], run_id, nearest
        )
        if nearest.is_file():
            record.log_file(nearest)
        metrics = results.overall_metrics(result)
        confidence = results.recorded_confidence(record)
        if confidence is not None:
            metrics |= confidence.metrics
        if record.has_model:  # from before the run was resumed
            results.record_pictures(record, prepared, predictions, result)
        else:
            # Hard-linked from here, not copied; hidden, so that `resume` removes it after a kill.
            exported = record.folder / ".model.pt2"
            try:
                with shared_worker().submit(
                    "export",
                    temporary=temporary_folder(record),
                    config=plain(config),
                    data=data,
                    weights=trained["weights"],
                    target=str(exported),
                    temperature=confidence.temperature if confidence else None,
                ) as answer:
                    results.record_pictures(record, prepared, predictions, result)
                    done = answer()
                    refused = done["refused"]
                if refused:
                    # No reason to fail after hours of training.
                    say("evaluate", f"no model is logged. {refused}")
                    record.set_tags({"model_not_logged": refused})
                else:
                    about = {"torch_version": trained["torch_version"], "digest": done["digest"]}
                    record.log_model(exported, prepared, **about, metrics=metrics, step=epoch)
            finally:
                exported.unlink(missing_ok=True)
        # The overall metrics are those that the model was logged with.
        metrics |= results.class_metrics(result, prepared.classes)
        record.log_metrics(metrics, step=0)
    return str(record.folder / PREDICTIONS_FILE)


def predict_test(
    config: RunConfig, data: str, weights: str, run_id: str, nearest: Path | None = None
) -> tuple[PreparedDataset, Predictions, Evaluation]:
    """Predict the test split and record what was predicted, but none of the figures.

    Args:
        nearest: the file for the training images that are nearest to the surest mistakes.
    """
    record = record_of(run_id)
    with tempfile.TemporaryDirectory() as scratch:
        arrays = Path(scratch) / "predictions.npz"  # the worker does without pyarrow
        arguments: dict[str, Any] = {"config": plain(config), "data": data, "weights": weights}
        if nearest:
            arguments["nearest"] = str(nearest)
        done = call("evaluate", run_id, target=str(arrays), **arguments)
        prepared, predictions = PreparedDataset.open(Path(data)), Predictions.load(arrays)
        if (confidence := arrays.with_name(CONFIDENCE_FILE)).exists():
            Confidence.read(confidence).write(record.folder / CONFIDENCE_FILE)
            record.log_file(record.folder / CONFIDENCE_FILE)
    result = evaluate(predictions, prepared.classes, done["figures"])
    target = record.folder / PREDICTIONS_FILE
    PredictionTable.of(predictions, record.name, prepared, done["figures"]).write(target)
    record.log_file(target)
    record.set_tags({"worst_class": result.worst_class})
    say(
        "evaluate",
        f"{result.accuracy:.1%} of {result.images:,} test samples right, "
        f"cross-entropy {result.cross_entropy:.4f}",
    )
    return prepared, predictions, result


@task(cache_policy=NO_CACHE, **RETRIED, task_run_name="report_per_class: {config.dataset.name}")
def report_per_class(
    config: RunConfig, data: str, trained: dict[str, Any], predictions: str, run_id: str
) -> Outcome:
    """Write the per-class report to MLflow and Prefect."""
    record = record_of(run_id)
    with stage("report", run_id, "per class"):
        prepared = PreparedDataset.open(Path(data))
        table = PredictionTable.read(Path(predictions))
        result = evaluate(table.predictions, prepared.classes, table.figures)
        rows = report.record_report(record, config, prepared, table, result, trained)
        where = "are in MLflow" if record.flush() else "wait on disk for MLflow"
        say("report", f"per-class table, pictures and report {where}")
    return Outcome(run_id, record.name, record.url, result.accuracy, result.images, rows)


@task(cache_policy=NO_CACHE, **RETRIED, task_run_name="promote_model: {config.promote.model}")
def promote_model(config: RunConfig, run_id: str) -> dict[str, Any]:
    """Make the model the champion if every gate passes; returns `promotion` and `gained`."""
    assert config.promote is not None
    with stage("promote", run_id, config.promote.model):
        judged, gained = promotion.judge(record_of(run_id), resolve_here(config))
        for line in judged.lines:
            say("promote", line)
        say("promote", judged.outcome)
    return {"promotion": in_short(judged), "gained": gained}
