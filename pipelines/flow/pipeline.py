"""The flow: prepare, train, evaluate, report; every task a few lines that call core.

Tasks pass on folders, files and ids; what a task does stands in `stage.py`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any, TypeVar

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.utilities.annotations import quote

from torchyard.core.config.resolve import ResolvedConfig, resolve_once
from torchyard.core.config.schema import RunConfig
from torchyard.core.data.dataset import PreparedDataset
from torchyard.core.data.files import cache_folder, temporary_files_in
from torchyard.core.data.predictions import PREDICTIONS_FILE, Predictions, PredictionTable
from torchyard.core.errors import UserError
from torchyard.core.evaluation.conformal import CONFIDENCE_FILE, Confidence
from torchyard.core.evaluation.metrics import Evaluation, evaluate
from torchyard.core.evaluation.nearest import FILE as NEAREST_FILE
from torchyard.core.formatting import dimensions
from torchyard.core.hosting.host import host
from torchyard.core.hosting.sources import PLUGIN_FOLDERS
from torchyard.core.redaction import redact_logs
from torchyard.core.tracking.record import RunRecord
from torchyard.core.tracking.store import check_writable, tracking_uri
from torchyard.core.tracking.weights import recorded_weights
from torchyard.pipelines.display import display
from torchyard.pipelines.flow import recording, reporting
from torchyard.pipelines.flow.extension import FinishedRun
from torchyard.pipelines.flow.failures import (
    RETRIED,
    ended_as,
    is_deployed,
    is_mistake,
    reason_of,
    run_cancellable,
)
from torchyard.pipelines.flow.outcome import Outcome, in_short
from torchyard.pipelines.flow.prefect_calls import call_flow, recorded
from torchyard.pipelines.flow.progress import ProgressReport
from torchyard.pipelines.flow.stage import (
    call,
    open_records,
    plain,
    record_of,
    say,
    stage,
    temporary_folder,
)
from torchyard.pipelines.services.prefect_server import FLOW
from torchyard.pipelines.services.scheduling.deployments import NEEDS
from torchyard.pipelines.worker.process import check_config, shared_worker

T = TypeVar("T")
_failed: set[str | None] = set()  # flow runs that this process has tried
DESCRIPTION = "Train a classifier: prepare → train → evaluate → report, in one MLflow run."


@flow(name=FLOW, description=DESCRIPTION)
def train_pipeline(
    config: RunConfig, run_id: str | None = None, parent: str | None = None
) -> Outcome | None:
    """Train a classifier: prepare → train → evaluate → per-class report, in one MLflow run.

    Args:
        config: data set, model, training and device.
        run_id: of an MLflow run that ended early, to resume from its last checkpoint.
        parent: of the MLflow run that this one is a child of, if any: one of several seeds, or
            a finished run that is extended, from its last weights.

    Raises:
        UserError: the configuration or the data are wrong.
        RunError: a stage failed.
        CancelledRun: it was cancelled in Prefect.

    Returns:
        The outcome; None where `train.skip_repeats` let it end before it trained.
    """
    ended: Outcome | str
    try:
        ended = run_cancellable(lambda: _run_stages(config, run_id, parent))
    except recording.FinishedError as error:
        ended = str(error)
    except BaseException:
        _failed.add(flow_run.id)
        raise
    if flow_run.id in _failed:
        # Prefect 3.9 raises what a try before this one raised where this one returns a state.
        return ended if isinstance(ended, Outcome) else None
    # A state with a message is how a flow tells Prefect's pages what it came to.
    if isinstance(ended, Outcome):
        return Completed(message=ended.line, data=ended)  # type: ignore[return-value]
    return Completed(message=ended) if isinstance(ended, str) else ended  # type: ignore[return-value]


def call_pipeline(config: RunConfig, run_id: str | None = None, parent: str | None = None) -> None:
    """Call the flow; whenever this process dies, its flow run has a label that names it.

    Raises:
        As the flow does.
    """
    call_flow(train_pipeline, {"config": config, "run_id": run_id, "parent": parent})


@recorded()
def _run_stages(config: RunConfig, run_id: str | None, parent: str | None) -> Outcome | str:
    """Run the tasks; a text if none was to be trained: why."""
    redact_logs()
    resolved = _resolve_here(config)
    config = resolved.config
    check_writable(tracking_uri())
    for change in resolved.changed:
        get_run_logger().warning(change)
    resumed = run_id is not None
    weights = None if resumed else recorded_weights(resolved)
    check_config(config, weights=weights, resumed=resumed)
    resolved = recording.with_drawn_seed(recording.with_weights(resolved, weights))
    config = resolved.config
    began = time.perf_counter()
    record = recording.start_record(resolved, run_id, parent)
    open_records[record.run_id] = record
    display.get().began(record.run_id, record.name)
    try:
        with temporary_files_in(temporary_folder(record)):
            data = prepare_data(config, record.run_id)
            if extended := FinishedRun.find(parent):
                extended.begin(record, config, Path(data))
            elif run_id is None and (skipped := _repeats(record, config, data)):
                return skipped
            if resumed and not any(record.folder.glob("*.pt")):  # a checkpoint has the weights
                weights = recorded_weights(resolved)
            trained = train_model(config, data, record.run_id, weights)
            predictions = evaluate_model(config, _unlinked(data), trained, record.run_id)
            outcome = report_per_class(
                config, _unlinked(data), _unlinked(trained), predictions, record.run_id
            )
            if config.promote:
                outcome = dataclasses.replace(outcome, **promote_model(config, record.run_id))
        # Behind the temporary files: nothing looks for those of a finished run.
        record.log_metrics({"time/total_seconds": time.perf_counter() - began}, step=0)
        record.finish("FINISHED")
        display.get().outcome = outcome
        if record.pending:
            say(
                "record",
                f"MLflow does not answer: {record.pending} entries wait on disk for it; "
                f"`torchyard resume {record.run_id}` sends them, and so does the next run.",
            )
    except BaseException as error:
        reason = reason_of(error)
        status = ended_as(error)
        recorded = record.finish(status, reason)
        if not (is_mistake(error) and record.discard()):
            error.add_note(recording.ending_note(record, status, recorded))
        raise
    finally:
        del open_records[record.run_id]
    return outcome


def _repeats(record: RunRecord, config: RunConfig, data: str) -> str:
    """Say if a run can only repeat an earlier one; returns why, if it is ended for that."""
    earlier = recording.repeated_run(record, config, PreparedDataset.open(Path(data)))
    if earlier is None:
        return ""
    same = f"{earlier} had the same configuration, seed, data and code"
    if config.train.skip_repeats:
        skipped = f"skipped: {same}"
        say("train", skipped)
        record.finish("KILLED", skipped)
        return skipped
    say("train", f"{same}: this run can only repeat it (train.seed=per_run draws another seed)")
    return ""


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
        if _resolve_here(config).audited:
            for line in recording.record_audit(record, config, data):
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
        told = ProgressReport(config.train.epochs)
        done = call("train", run_id, classes, told, **arguments)
        recording.record_training(record, done)
        if note := recording.differing_note(record):
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
        metrics = recording.overall_metrics(result)
        confidence = recording.recorded_confidence(record)
        if confidence is not None:
            metrics |= confidence.metrics
        if record.has_model:  # from before the run was resumed
            recording.record_pictures(record, prepared, predictions, result)
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
                    recording.record_pictures(record, prepared, predictions, result)
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
        metrics |= recording.class_metrics(result, prepared.classes)
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
        rows = reporting.record_report(record, config, prepared, table, result, trained)
        where = "are in MLflow" if record.flush() else "wait on disk for MLflow"
        say("report", f"per-class table, pictures and report {where}")
    return Outcome(run_id, record.name, record.url, result.accuracy, result.images, rows)


@task(cache_policy=NO_CACHE, **RETRIED, task_run_name="promote_model: {config.promote.model}")
def promote_model(config: RunConfig, run_id: str) -> dict[str, Any]:
    """Make the model the champion if every gate passes; returns `promotion` and `gained`."""
    assert config.promote is not None
    with stage("promote", run_id, config.promote.model):
        judged, gained = recording.judge(record_of(run_id), _resolve_here(config))
        for line in judged.lines:
            say("promote", line)
        say("promote", judged.outcome)
    return {"promotion": in_short(judged), "gained": gained}


# ---- what the tasks share


def _resolve_here(config: RunConfig) -> ResolvedConfig:
    """Find the plugins, by the folders and distributions that this process has.

    Raises:
        UserError: with every problem; for a plugin that is missing here, where it was from when
            the run was deployed. Or the record would go into a folder that Prefect deletes.
    """
    temporary = Path.cwd().is_relative_to(Path(tempfile.gettempdir()).resolve())
    store = os.environ.get("MLFLOW_TRACKING_URI")
    if is_deployed() and temporary and (not store or re.match(r"sqlite[^/]*:///[^/]", store)):
        raise UserError(
            "this Prefect worker's folder is temporary, and the record would be lost with it: set "
            "MLFLOW_TRACKING_URI, for the worker or as the job variable env.MLFLOW_TRACKING_URI, "
            "or the job variable working_dir."
        )
    try:
        return resolve_once(plain(config), host())
    except UserError as error:
        needs = json.loads(os.environ.get(NEEDS, "{}"))
        missing = [
            f"{slot}: it was from {origin} when this was deployed. Install that where the Prefect "
            f"worker runs, or name its folder there in {PLUGIN_FOLDERS}."
            for slot, origin in needs.items()
            if any(problem.startswith(f"{slot}: no ") for problem in error.problems)
        ]
        raise UserError([*error.problems, *missing]) from error


def _unlinked(handed_on: T) -> T:
    """What a task is given without an arrow: Prefect draws one from the task before, not from all.

    Otherwise they cross one another and the names of the tasks.
    """
    return quote(handed_on)  # type: ignore[return-value]
