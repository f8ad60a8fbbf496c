"""The flow: prepare, train, evaluate, report; every task a few lines that call core.

Tasks pass on folders, files and ids. The torch work is done by a worker process
(`pipelines/worker/process.py`), which the tasks of one process share.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import deployment

from torchyard.core.config.resolve import ResolvedConfig, resolve_once
from torchyard.core.config.schema import RunConfig
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import cache_folder
from torchyard.core.data.predictions import PREDICTIONS_FILE, Predictions, PredictionTable
from torchyard.core.errors import UserError
from torchyard.core.evaluation.metrics import evaluate
from torchyard.core.formatting import dimensions
from torchyard.core.hosting.host import host
from torchyard.core.hosting.sources import PLUGIN_FOLDERS
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.store import check_writable, tracking_uri
from torchyard.core.training.events import EpochDone, Event, TrainingBatch, TrainingMetrics
from torchyard.pipelines.display import display, epoch_line
from torchyard.pipelines.flow import recording
from torchyard.pipelines.flow.failures import RETRIED, ended_as, reason_of, run_cancellable
from torchyard.pipelines.services.deployments import NEEDS
from torchyard.pipelines.services.prefect_server import FLOW
from torchyard.pipelines.worker.process import check_config, shared_worker


@dataclass(frozen=True)
class Outcome:
    """What a finished run returns.

    Attributes:
        run_id, name, url: of the MLflow run.
        accuracy: on the test split, 0 to 1.
        images: test samples.
        per_class: one row per class: class, images, correct, accuracy, precision, f1.
    """

    run_id: str
    name: str
    url: str
    accuracy: float
    images: int
    per_class: list[dict[str, Any]]


@flow(name=FLOW)
def train_pipeline(config: RunConfig, run_id: str | None = None) -> Outcome:
    """Train a classifier: prepare → train → evaluate → per-class report, in one MLflow run.

    Args:
        config: data set, model, training and device.
        run_id: of an MLflow run that ended early, to resume from its last checkpoint.

    Raises:
        UserError: the configuration or the data are wrong.
        RunError: a stage failed.
        CancelledRun: it was cancelled in Prefect.
    """
    return run_cancellable(lambda: _run_stages(config, run_id))


def _run_stages(config: RunConfig, run_id: str | None) -> Outcome:
    resolved = _resolve_here(config)
    config = resolved.config
    check_writable(tracking_uri())
    for change in resolved.changed:
        get_run_logger().warning(change)
    check_config(config)
    began = time.perf_counter()
    record = recording.start_record(resolved, run_id)
    _records[record.run_id] = record
    display.get().began(record.run_id, record.name)
    try:
        data = prepare_data(config, record.run_id)
        trained = train_model(config, data, record.run_id)
        predictions = evaluate_model(config, data, trained, record.run_id)
        outcome = report_per_class(config, data, trained, predictions, record.run_id)
        if config.promote:
            promote_model(config, record.run_id)
        record.log_metrics({"time/total_seconds": time.perf_counter() - began}, step=0)
        record.finish("FINISHED")
        display.get().outcome = outcome
        if record.pending:
            _say(
                "record",
                f"MLflow does not answer: {record.pending} entries wait on disk for it; "
                f"`torchyard resume {record.run_id}` sends them, and so does the next run.",
            )
    except BaseException as error:
        reason = reason_of(error)
        status = ended_as(error)
        record.finish(status, reason)
        error.add_note(f"Recorded as {status}: {record.name}  {record.run_id}")
        raise
    finally:
        del _records[record.run_id]
    return outcome


@task(cache_policy=NO_CACHE, **RETRIED, task_run_name="prepare_data: {config.dataset.name}")
def prepare_data(config: RunConfig, run_id: str) -> str:
    """Download or read, verify and store the data set; returns the folder of its arrays."""
    with _stage("prepare", run_id, config.dataset.name):
        done = _call("prepare", run_id, config=_plain(config), cache=str(cache_folder()))
        data = PreparedDataset.open(Path(done["folder"]))
        _record(run_id).log_dataset(data)
        found = "found prepared" if done["found"] else "prepared"
        _say(
            "prepare",
            f"{data.name}: {data.counts['train']:,} training and {data.counts['test']:,} test "
            f"samples of {dimensions(data.shape)}, {len(data.classes)} classes, {found}",
        )
    return str(data.folder)


@task(
    task_run_name="train_model: {config.model.name}, {config.optimizer.name}",
    cache_policy=NO_CACHE,
)
def train_model(config: RunConfig, data: str, run_id: str) -> dict[str, Any]:
    """Train; returns `weights` (the checkpoint to use), placement, `fit` and `parameters`."""
    with _stage("train", run_id, config.model.name):
        record, classes = _record(run_id), PreparedDataset.open(Path(data)).classes
        arguments = {"config": _plain(config), "data": data, "folder": str(record.folder)}
        done = _call("train", run_id, classes, **arguments)
        recording.record_training(record, done)
        fit, placement = done["fit"], done["placement"]
        trained = "parameters to train" if config.model.freeze else "parameters"
        compiled = f", compiled {placement['compiled']}" * (placement["compiled"] != "false")
        early = f"; stopped early, epoch {fit['best_epoch']} was best" * fit["stopped_early"]
        _say(
            "train",
            f"{config.model.name} with {done['parameters']:,} {trained}, {fit['steps']:,} steps "
            f"in {fit['seconds']:.1f} s on {placement['device']} ({placement['device_name']}), "
            f"{placement['execution']}{compiled}{early}",
        )
    return {**placement, **fit, **{key: done[key] for key in ("weights", "parameters")}}


@task(cache_policy=NO_CACHE, **RETRIED, task_run_name="evaluate_model: {config.model.name}")
def evaluate_model(config: RunConfig, data: str, trained: dict[str, Any], run_id: str) -> str:
    """Predict and draw the test split, log model and results; returns the predictions' file."""
    record, epoch = _record(run_id), trained["best_epoch"]
    target = record.folder / PREDICTIONS_FILE
    arguments: dict[str, Any] = {
        "config": _plain(config),
        "data": data,
        "weights": trained["weights"],
    }
    with _stage("evaluate", run_id, config.dataset.name), tempfile.TemporaryDirectory() as scratch:
        arrays = Path(scratch) / "predictions.npz"  # the worker does without pyarrow
        _call("evaluate", run_id, target=str(arrays), **arguments)
        prepared, predictions = PreparedDataset.open(Path(data)), Predictions.load(arrays)
        result = evaluate(predictions, prepared.classes)
        PredictionTable.of(predictions, record.name, prepared).write(target)
        record.log_file(target)
        record.set_tags({"worst_class": result.worst_class})
        _say(
            "evaluate",
            f"{result.accuracy:.1%} of {result.images:,} test samples right, "
            f"cross-entropy {result.cross_entropy:.4f}",
        )
        metrics = recording.overall_metrics(result)
        if record.has_model:  # from before the run was resumed
            recording.record_pictures(record, prepared, predictions, result)
        else:
            # Hard-linked from here, not copied; hidden, so that `resume` removes it after a kill.
            exported = record.folder / ".model.pt2"
            try:
                with shared_worker().submit("export", target=str(exported), **arguments) as answer:
                    recording.record_pictures(record, prepared, predictions, result)
                    refused = answer()["refused"]
                if refused:
                    # No reason to fail after hours of training.
                    _say("evaluate", f"no model is logged. {refused}")
                    record.set_tags({"model_not_logged": refused})
                else:
                    version = trained["torch_version"]
                    record.log_model(
                        exported, prepared, torch_version=version, metrics=metrics, step=epoch
                    )
            finally:
                exported.unlink(missing_ok=True)
        # The overall metrics are those that the model was logged with.
        metrics |= recording.class_metrics(result, prepared.classes)
        record.log_metrics(metrics, step=epoch)
    return str(target)


@task(cache_policy=NO_CACHE, **RETRIED, task_run_name="report_per_class: {config.dataset.name}")
def report_per_class(
    config: RunConfig, data: str, trained: dict[str, Any], predictions: str, run_id: str
) -> Outcome:
    """Write the per-class report to MLflow and Prefect."""
    record = _record(run_id)
    with _stage("report", run_id, "per class"):
        prepared = PreparedDataset.open(Path(data))
        predicted = PredictionTable.read(Path(predictions)).predictions
        result = evaluate(predicted, prepared.classes)
        rows = recording.record_report(record, config, prepared, predicted, result, trained)
        _say("report", "per-class table, pictures and report are in MLflow")
    return Outcome(run_id, record.name, record.url, result.accuracy, result.images, rows)


@task(cache_policy=NO_CACHE, **RETRIED, task_run_name="promote_model: {config.promote.model}")
def promote_model(config: RunConfig, run_id: str) -> str:
    """Make the model the champion if every gate passes; returns how that ended."""
    assert config.promote is not None
    with _stage("promote", run_id, config.promote.model):
        judged = recording.judge(_record(run_id), _resolve_here(config))
        for line in judged.lines:
            _say("promote", line)
        _say("promote", judged.outcome)
    return judged.outcome


# ---- what the tasks share


def _resolve_here(config: RunConfig) -> ResolvedConfig:
    """Find the plugins, by the folders and distributions that this process has.

    Raises:
        UserError: with every problem; for a plugin that is missing here, where it was from when
            the run was deployed. Or the record would go into a folder that Prefect deletes.
    """
    temporary = Path.cwd().is_relative_to(Path(tempfile.gettempdir()).resolve())
    if deployment.id and temporary and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            "this Prefect worker's folder is temporary, and the record would be lost with it: set "
            "MLFLOW_TRACKING_URI, for the worker or as the job variable env.MLFLOW_TRACKING_URI, "
            "or the job variable working_dir."
        )
    try:
        return resolve_once(_plain(config), host())
    except UserError as error:
        needs = json.loads(os.environ.get(NEEDS, "{}"))
        missing = [
            f"{slot}: it was from {origin} when this was deployed. Install that where the Prefect "
            f"worker runs, or name its folder there in {PLUGIN_FOLDERS}."
            for slot, origin in needs.items()
            if any(problem.startswith(f"{slot}: no ") for problem in error.problems)
        ]
        raise UserError([*error.problems, *missing]) from error


_records: dict[str, RunRecord] = {}


def _record(run_id: str) -> RunRecord:
    # A task that Prefect runs in another process opens the record there.
    return _records.get(run_id) or RunRecord.open(run_id)


def _plain(config: RunConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _call(stage: str, run_id: str, classes: Sequence[str] = (), **arguments: Any) -> dict[str, Any]:
    """Run a stage in the worker; its events go to display, MLflow and Prefect."""
    record, shown, logger = _record(run_id), display.get(), get_run_logger()

    def on_event(event: Event) -> None:
        shown.event(event)
        if isinstance(event, TrainingBatch):
            recording.record_training_batch(record, Path(event.file), classes)
        elif isinstance(event, TrainingMetrics):  # they are in the run's log
            record.flush_if_due()
        if isinstance(event, EpochDone):
            logger.info(epoch_line(event))

    def on_output(line: str) -> None:
        shown.output(line)
        logger.info(line)

    worker = shared_worker()
    worker.on_output = on_output
    return worker.call(stage, on_event, **arguments)


@contextlib.contextmanager
def _stage(name: str, run_id: str, status: str) -> Iterator[None]:
    """Show a stage, and record how long it took."""
    started = time.perf_counter()
    with display.get().stage(name, status):
        yield
        record = _record(run_id)
        record.log_metrics({f"time/{name}_seconds": time.perf_counter() - started}, step=0)
        record.flush()


def _say(stage: str, text: str) -> None:
    display.get().line(stage, text)
    get_run_logger().info(text)
